"""Repeated writes on every filesystem: a place that was told twice is not told again before the next fence."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from replicator.capture.epochs import LOW
from replicator.capture.event import TO_THE_END, EventFlag, EventKind
from tests.native.traced import BLOCK, FORMS, Records, Traced, traced
from tests.support.helpers import Mapper, call

pytestmark = pytest.mark.native

FILESYSTEMS = ["ext4", "xfs", "btrfs", "tmpfs"]
KEEP_SIZE, PUNCH_HOLE = 1, 2
SIZE = 4 * BLOCK

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(autouse=True)
def one_processor() -> Iterator[int]:
    """What was told is remembered by processor: the test stays on one, and so does what it starts."""
    before = os.sched_getaffinity(0)
    cpu = min(before)
    os.sched_setaffinity(0, {cpu})
    yield cpu
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="module", params=itertools.product(FILESYSTEMS, FORMS), ids="-".join)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    fstype, form = request.param
    with traced(fstype, tmp_path_factory.mktemp(fstype) / "fs", made=FORMS[form]) as here:
        here.sensor.fence()
        yield here


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Traced]:
    with traced("tmpfs", tmp_path / "fs") as here:
        here.sensor.fence()
        yield here


@contextlib.contextmanager
def sparse(place: Traced) -> Iterator[int]:
    """A file without a byte written, so that the first write is the first that is told."""
    with place.file() as fd:
        os.truncate(fd, SIZE)
        place.drain()
        yield fd


def writes(records: Records) -> list[int]:
    """The epochs of the records of bytes."""
    return [int(each) for each in records.events["epoch"][records.events["kind"] == EventKind.WRITE]]


def hammer(place: Traced, fd: int, length: int = BLOCK) -> list[int]:
    for number in range(10):
        os.pwrite(fd, bytes([number]) * length, 0)
    return writes(place.records(fd))


def settle(place: Traced, fd: int) -> None:
    """Have the first block told, so that further writes to it are left out."""
    hammer(place, fd)
    assert not hammer(place, fd), "this place is told no more"


def test_ten_writes_of_one_place_are_two_records_and_one_more_after_a_fence(place: Traced) -> None:
    with sparse(place) as fd:
        epoch = place.sensor.fence()
        before = place.sensor.untold()
        assert hammer(place, fd) == [0, epoch & LOW], "the first, and the one that stands for the others"
        assert place.sensor.untold() - before == 8
        assert not hammer(place, fd)
        later = place.sensor.fence()
        assert hammer(place, fd) == [later & LOW]


def test_every_write_is_told_before_the_first_fence(tmp_path: Path) -> None:
    with traced("ext4", tmp_path / "fs") as place, sparse(place) as fd:
        assert hammer(place, fd) == [0] * 10
        assert place.sensor.untold() == 0


def test_a_write_within_the_place_is_left_out_one_beside_it_is_told(place: Traced) -> None:
    told = BLOCK if place.fstype == "btrfs" else 512  # btrfs tells whole blocks
    with sparse(place) as fd:
        hammer(place, fd, length=told)
        os.pwrite(fd, b"y" * 200, 100)
        assert not writes(place.records(fd))
        os.pwrite(fd, b"yy", told - 1)
        assert place.records(fd).covers(told, 1)


def test_what_a_narrower_record_stands_for_is_no_wider_than_it(place: Traced) -> None:
    if place.fstype == "btrfs":
        wide, narrow = 2 * BLOCK, BLOCK
    else:
        wide, narrow = BLOCK, 512
    with sparse(place) as fd:
        os.pwrite(fd, b"a" * wide, 0)
        os.pwrite(fd, b"b" * narrow, 0)
        place.records(fd)
        os.pwrite(fd, b"c" * narrow, wide - narrow)
        assert place.records(fd).covers(wide - narrow, narrow)


def test_appends_are_never_left_out(place: Traced) -> None:
    with place.file(flags=os.O_WRONLY | os.O_APPEND) as fd:
        for number in range(50):
            os.write(fd, b"line\n")
            assert place.records(fd).covers(5 * number, 5), number


def test_a_file_that_shrinks_and_grows_by_what_is_left_out_is_told_to_have_shrunk(place: Traced) -> None:
    with sparse(place) as fd:
        settle(place, fd)
        os.truncate(fd, 0)
        os.pwrite(fd, b"y" * BLOCK, 0)
        assert place.records(fd).lowest == 0, "the bytes are owed since before"


def test_holes_are_never_left_out(place: Traced) -> None:
    with sparse(place) as fd:
        settle(place, fd)
        for number in range(5):
            os.pwrite(fd, bytes([number]) * BLOCK, 0)
            assert libc.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(BLOCK)) == 0
            records = place.records(fd)
            assert records.covers(0, BLOCK), records
            assert np.any(records.events["flags"] & EventFlag.HOLES), records


def test_sizes_are_never_left_out(place: Traced) -> None:
    with sparse(place) as fd:
        settle(place, fd)
        for _ in range(5):
            os.truncate(fd, 0)
            os.truncate(fd, SIZE)
            assert EventKind.SIZE in place.records(fd).kinds


def test_stores_through_a_mapping_are_never_left_out(place: Traced) -> None:
    path = place.path()
    path.write_bytes(bytes(SIZE))
    with path.open("r+b", buffering=0) as file, Mapper(path) as mapper:
        fd = file.fileno()
        mapper.map(0, SIZE)
        os.fsync(fd)
        place.drain()
        for number in range(5):
            mapper.store(0, 1, number)
            if place.fstype == "tmpfs" and number:  # whose later stores nobody sees
                break
            assert place.records(fd).covers(0, 1), number
            mapper.msync()
            place.drain()


def test_the_same_place_written_on_another_processor_is_told_there(place: Traced, one_processor: int) -> None:
    path = place.path()
    path.write_bytes(bytes(SIZE))
    others = sorted(set(range(os.cpu_count() or 1)) - {one_processor})
    assert others, "this test needs two processors"
    with path.open("r+b", buffering=0) as file:
        fd = file.fileno()
        settle(place, fd)
        command = ["dd", f"if={path}", f"of={path}", f"bs={BLOCK}", "count=1", "conv=notrunc"]
        subprocess.run(["taskset", "-c", str(others[0]), *command], check=True, capture_output=True)
        assert writes(place.records(fd)) == [0]
        assert not hammer(place, fd), "nothing has changed on the first"


def test_another_file_under_the_same_name_is_told(place: Traced) -> None:
    path = place.path()
    epoch = place.sensor.fence()
    for _ in range(5):
        with path.open("wb", buffering=0) as file:
            file.truncate(SIZE)
            place.drain()
            assert hammer(place, file.fileno()) == [0, epoch & LOW]
        path.unlink()


def test_a_lost_record_stands_for_nothing(tmp_path: Path) -> None:
    with traced("ext4", tmp_path / "fs", ring_bytes=BLOCK) as place, sparse(place) as fd:
        place.sensor.fence()
        for number in range(100):  # different places, until the ring is full
            os.pwrite(fd, b"y", number)
        for _ in range(10):
            os.pwrite(fd, b"z" * 10, 2 * BLOCK)
        assert place.sensor.losses()["ring_full"] > 0
        assert place.sensor.untold() == 0, "no record told of the place that was written again and again"


def test_a_write_of_unknown_length_is_told_where_a_short_one_was(tmpfs: Traced) -> None:
    path = tmpfs.path()
    path.write_bytes(bytes(64 * BLOCK))
    with path.open("r+b", buffering=0) as file:
        settle(tmpfs, file.fileno())
        call("aio_write", path, "pieces", 512, 40_000, 7)
        records = tmpfs.records(file.fileno())
        assert records.touched == [(512, TO_THE_END)], records


def test_a_record_of_a_mapped_file_on_btrfs_may_be_a_fault(tmp_path: Path) -> None:
    with traced("btrfs", tmp_path / "fs") as place:
        place.sensor.fence()
        path = place.path()
        path.write_bytes(bytes(SIZE))
        with path.open("r+b", buffering=0) as file, Mapper(path) as mapper:
            mapper.map(0, SIZE)
            place.drain()
            assert hammer(place, file.fileno()) == [0] * 10


def test_a_mapping_is_no_part_of_what_was_told_before_it(place: Traced) -> None:
    path = place.path()
    path.write_bytes(bytes(SIZE))
    with path.open("r+b", buffering=0) as file:
        settle(place, file.fileno())
        with Mapper(path) as mapper:
            mapper.map(0, SIZE)
            place.drain()
            os.pwrite(file.fileno(), b"y" * BLOCK, 0)
            assert place.records(file.fileno()).flagged(EventKind.WRITE, EventFlag.MAPPED)

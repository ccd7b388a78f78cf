"""Every way to change bytes on ext4 and XFS: the records cover what was touched, and no more than its blocks."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import mmap
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.capture.event import TO_THE_END, EventFlag, EventKind
from replicator.capture.sensor import Filesystem
from replicator.capture.tracepoint import TracepointSensor
from tests.native.traced import BLOCK, FORMS, Traced, kernel_dev, traced

pytestmark = pytest.mark.native

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
FICLONE, FICLONERANGE = 0x40049409, 0x4020940D
SYNC_FILE_RANGE_ALL = 7
MIB = 1 << 20

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module", params=itertools.product(["ext4", "xfs"], FORMS), ids="-".join)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    fstype, form = request.param
    with traced(fstype, tmp_path_factory.mktemp(fstype) / "fs", made=FORMS[form]) as here:
        yield here


@pytest.fixture(params=[("nodelalloc",), ("data=journal",)], ids=lambda options: options[0])
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Traced]:
    with traced("ext4", tmp_path / "fs", request.param) as here:
        yield here


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), f"fallocate mode {mode}")


def flush_mapping(fd: int) -> None:
    assert libc.sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(0), SYNC_FILE_RANGE_ALL) == 0


def look(fd: int) -> None:
    """What the reader does before it reads: flush, and ask for the times."""
    flush_mapping(fd)
    os.stat(fd)


@contextlib.contextmanager
def mapping(fd: int) -> Iterator[mmap.mmap]:
    with mmap.mmap(fd, 0) as mapped:
        yield mapped


def aligned(length: int, byte: int) -> mmap.mmap:
    memory = mmap.mmap(-1, length)
    memory.write(bytes([byte]) * length)
    return memory


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1), (5000, 100), (4095, 2), (8192, 4096), (299_000, 1000), (100, 250_000)]
)
def test_pwrite(place: Traced, offset: int, length: int) -> None:
    with place.file(b"x" * 300_000) as fd:
        os.pwrite(fd, b"y" * length, offset)
        records = place.records(fd)
        assert records.covers(offset, length), records
        assert records.stays_within(offset, length), records
        assert EventKind.FOLIO not in records.kinds, records


def test_the_exact_range_is_told_of_small_writes(place: Traced) -> None:
    with place.file(b"x" * 300_000) as fd:
        os.pwrite(fd, b"y" * 10, 123_456)
        assert place.records(fd).touched == [(123_456, 123_466)]


def test_the_writer_is_told(place: Traced) -> None:
    with place.file(b"x" * 100) as fd:
        os.pwrite(fd, b"y", 0)
        records = place.records(fd)
        assert set(records.events["pid"].tolist()) == {os.getpid()}
        assert records.events["cgroup"].all()
        assert (records.events["fs"] == 0).all()


def test_timestamps_are_of_the_monotonic_clock_and_ascend(place: Traced) -> None:
    with place.file() as fd:
        before = time.monotonic_ns()
        for index in range(10):
            os.pwrite(fd, b"y", index)
        after = time.monotonic_ns()
        stamps = place.records(fd).events["ts"].tolist()
        assert len(stamps) >= 10
        assert stamps == sorted(stamps)
        assert before < stamps[0]
        assert stamps[-1] < after


def test_append(place: Traced) -> None:
    with place.file(b"x" * 10_000, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"y" * 5000)
        records = place.records(fd)
        assert records.covers(10_000, 5000), records
        assert records.stays_within(10_000, 5000), records


def test_writev_far_behind_the_end(place: Traced) -> None:
    with place.file(b"x" * 100) as fd:
        os.pwritev(fd, [b"a" * 3000, b"b" * 3000], 5 * 1024 * MIB + 17)
        records = place.records(fd)
        assert records.covers(5 * 1024 * MIB + 17, 6000), records
        assert records.stays_within(5 * 1024 * MIB + 17, 6000), records


def test_a_large_write(place: Traced) -> None:
    with place.file() as fd:
        os.pwrite(fd, b"z" * (8 * MIB + 5), 3)
        records = place.records(fd)
        assert records.covers(3, 8 * MIB + 5), records
        assert records.stays_within(3, 8 * MIB + 5), records


def test_sendfile_splice_and_copy_file_range(place: Traced) -> None:
    with place.file(b"s" * 100_000, os.O_RDONLY) as source, place.file(b"x" * 500_000) as fd:
        os.lseek(fd, 20_000, os.SEEK_SET)
        assert os.sendfile(fd, source, 0, 7000) == 7000
        records = place.records(fd)
        assert records.covers(20_000, 7000), records
        assert records.stays_within(20_000, 7000), records

        reader, writer = os.pipe()
        os.write(writer, b"p" * 6000)
        assert os.splice(reader, fd, 6000, offset_dst=50_001) == 6000
        os.close(reader)
        os.close(writer)
        records = place.records(fd)
        assert records.covers(50_001, 6000), records
        assert records.stays_within(50_001, 6000), records

        assert os.copy_file_range(source, fd, 9000, 100, 300_000) == 9000
        records = place.records(fd)
        assert records.covers(300_000, 9000), records
        assert records.stays_within(300_000, 9000), records


def test_direct_writes_and_appends(place: Traced) -> None:
    with place.file(b"x" * (64 * BLOCK), os.O_RDWR | os.O_DIRECT) as fd, aligned(4 * BLOCK, 7) as memory:
        os.pwritev(fd, [memory], 8 * BLOCK)
        records = place.records(fd)
        assert records.touched == [(8 * BLOCK, 12 * BLOCK)], records
        assert records.events["kind"].tolist().count(EventKind.WRITE) == 1, records
        os.pwritev(fd, [memory], 64 * BLOCK)
        records = place.records(fd)
        assert records.touched == [(64 * BLOCK, 68 * BLOCK)], records
        fallocate(fd, 0, 100 * BLOCK, 10 * BLOCK)
        place.records(fd)
        os.pwritev(fd, [memory], 102 * BLOCK)
        records = place.records(fd)
        assert records.touched == [(102 * BLOCK, 106 * BLOCK)], records


def test_a_failed_direct_write_may_have_written_its_range(place: Traced) -> None:
    with place.file(b"x" * (64 * BLOCK), os.O_RDWR | os.O_DIRECT) as fd, aligned(4 * BLOCK, 7) as memory:
        unreadable = mmap.mmap(-1, 2 * BLOCK)
        address = ctypes.addressof(ctypes.c_char.from_buffer(unreadable))
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_long(2 * BLOCK), 0) == 0
        written = libc.pwrite(fd, ctypes.c_void_p(address), ctypes.c_long(2 * BLOCK), ctypes.c_long(0))
        assert written == -1
        records = place.records(fd)
        assert records.stays_within(0, 2 * BLOCK), records
        os.pwritev(fd, [memory], 20 * BLOCK)
        records = place.records(fd)
        assert records.touched == [(20 * BLOCK, 24 * BLOCK)], records


@pytest.mark.parametrize(
    ("mode", "offset", "length"),
    [
        (0, 0, 2 * MIB),
        (0, 500_000, 10_000),
        (KEEP_SIZE, 2 * MIB, MIB),
        (PUNCH_HOLE | KEEP_SIZE, 5000, 200_000),
        (PUNCH_HOLE | KEEP_SIZE, 5000, 10),
        (ZERO_RANGE, 30_000, 50_000),
        (ZERO_RANGE, 1_000_000, MIB),
    ],
)
def test_fallocate(place: Traced, mode: int, offset: int, length: int) -> None:
    with place.file(b"x" * MIB) as fd:
        fallocate(fd, mode, offset, length)
        records = place.records(fd)
        assert records.covers(offset, length), records
        assert records.stays_within(offset, length), records
        assert records.flagged(EventKind.WRITE, EventFlag.HOLES), records


@pytest.mark.parametrize("mode", [COLLAPSE_RANGE, INSERT_RANGE])
def test_collapse_and_insert_move_the_tail(place: Traced, mode: int) -> None:
    with place.file(b"x" * MIB) as fd:
        fallocate(fd, mode, 16 * BLOCK, 4 * BLOCK)
        records = place.records(fd)
        assert records.touched == [(16 * BLOCK, TO_THE_END)], records
        assert EventKind.TAIL in records.kinds


def test_a_store_through_a_mapping(place: Traced) -> None:
    with place.file(b"x" * (8 * MIB)) as fd, mapping(fd) as mapped:
        mapped[5 * MIB + 11] = 1
        records = place.records(fd)
        assert records.covers(5 * MIB + 11, 1), records
        assert records.stays_within(5 * MIB + 11, 1, 2 * MIB), records
        assert records.flagged(EventKind.FOLIO, EventFlag.MAPPED), records


def test_stores_after_each_flush_are_seen_again(place: Traced) -> None:
    with place.file(b"x" * MIB) as fd, mapping(fd) as mapped:
        for turn in range(5):
            mapped[300_000 + turn] = turn
            records = place.records(fd)
            assert records.covers(300_000 + turn, 1), (turn, records)
            flush_mapping(fd)
            place.records(fd)


def test_a_store_into_a_page_that_write_had_dirtied(place: Traced) -> None:
    with place.file(b"x" * MIB) as fd, mapping(fd) as mapped:
        os.pwrite(fd, b"w" * 10, 400_000)
        place.records(fd)
        mapped[400_100] = 1
        records = place.records(fd)
        assert records.covers(400_100, 1), records


def test_a_read_into_a_mapping_is_a_store(place: Traced) -> None:
    with (
        place.file(b"s" * (4 * BLOCK), os.O_RDONLY | os.O_DIRECT) as direct,
        place.file(b"s" * 100, os.O_RDONLY) as source,
        place.file(b"x" * MIB) as fd,
        mapping(fd) as mapped,
    ):
        with memoryview(mapped) as view:
            os.preadv(source, [view[50_000:50_100]], 0)
            records = place.records(fd)
            assert records.covers(50_000, 100), records
            flush_mapping(fd)
            place.records(fd)
            os.preadv(direct, [view[61_440 : 61_440 + BLOCK]], 0)
            records = place.records(fd)
            assert records.covers(61_440, BLOCK), records


def test_a_write_to_a_mapped_file_is_no_folio(place: Traced) -> None:
    with place.file(b"x" * (4 * MIB)) as fd, mapping(fd):
        os.pwrite(fd, b"w" * 10, 3_000_000)
        records = place.records(fd)
        assert records.touched == [(3_000_000, 3_000_010)], records
        assert records.flagged(EventKind.WRITE, EventFlag.MAPPED), records
    with place.file(b"x" * 100) as fd:
        os.pwrite(fd, b"w" * 10, 0)
        assert not place.records(fd).flagged(EventKind.WRITE, EventFlag.MAPPED)


def test_odd_mounts_see_stores_into_dirty_pages_after_a_look(odd: Traced) -> None:
    with odd.file(b"x" * MIB) as fd:
        os.pwrite(fd, b"w" * 10, 400_000)
        # every record asks for a flush, because a store into what write() dirtied would be silent until then
        assert odd.records(fd).flagged(EventKind.WRITE, EventFlag.MAPPED)
        with mapping(fd) as mapped:
            for turn in range(3):
                look(fd)
                odd.records(fd)
                mapped[400_100 + turn] = 1
                assert odd.records(fd).covers(400_100 + turn, 1)
                os.pwrite(fd, b"w" * 10, 500_000)
                assert odd.records(fd).flagged(EventKind.WRITE, EventFlag.MAPPED)
                look(fd)
                os.pwrite(fd, b"w" * 10, 500_000)
                odd.records(fd)
                mapped[500_100] = turn
                records = odd.records(fd)
                assert records.covers(500_100, 1), records


def test_odd_mounts_see_writes(odd: Traced) -> None:
    with odd.file(b"x" * MIB) as fd:
        os.pwrite(fd, b"w" * 5000, 12_345)
        records = odd.records(fd)
        assert records.covers(12_345, 5000), records
        assert records.stays_within(12_345, 5000), records


def test_inline_data(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "inline_data", "-I", "512", image], check=True)
    point = tmp_path / "mount"
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    sensor = TracepointSensor(1 << 20)
    try:
        sensor.attach(Filesystem("ext4", kernel_dev(point)))
        place = Traced("ext4", point, sensor)
        with place.file(b"tiny") as fd:
            os.pwrite(fd, b"y" * 20, 2)
            records = place.records(fd)
            assert records.touched == [(2, 22)], records
            assert records.flagged(EventKind.WRITE, EventFlag.BEFORE), records
            with mapping(fd) as mapped:
                mapped[3] = 1
                assert place.records(fd).covers(3, 1)
    finally:
        sensor.close()
        subprocess.run(["umount", point], check=True)


def test_clones_on_xfs(tmp_path: Path) -> None:
    with traced("xfs", tmp_path / "fs") as place:
        with place.file(b"s" * (32 * BLOCK), os.O_RDONLY) as source, place.file(b"x" * (64 * BLOCK)) as fd:
            fcntl.ioctl(fd, FICLONERANGE, struct.pack("=qQQQ", source, 4 * BLOCK, 8 * BLOCK, 16 * BLOCK))
            records = place.records(fd)
            assert records.touched == [(16 * BLOCK, 24 * BLOCK)], records
            assert records.flagged(EventKind.WRITE, EventFlag.HOLES | EventFlag.BEFORE)
            os.pwrite(fd, b"y" * 10, 17 * BLOCK)
            assert place.records(fd).touched == [(17 * BLOCK, 17 * BLOCK + 10)]
            fcntl.ioctl(fd, FICLONE, source)
            records = place.records(fd)
            assert records.covers(0, 32 * BLOCK), records
            assert not len(place.records(source))


def test_a_loop_devices_writes_are_seen(place: Traced) -> None:
    with place.file(b"x" * (4 * MIB)) as fd:
        path = os.readlink(f"/proc/self/fd/{fd}")
        device = subprocess.run(["losetup", "-f", "--show", path], check=True, capture_output=True, text=True).stdout
        try:
            place.records(fd)
            with open(device.strip(), "r+b", buffering=0) as disk:
                os.pwrite(disk.fileno(), b"y" * 8192, MIB)
                os.fsync(disk.fileno())
            records = place.records(fd)
            assert records.covers(MIB, 8192), records
            assert records.stays_within(MIB, 8192), records
        finally:
            subprocess.run(["losetup", "-d", device.strip()], check=True)


def test_reads_make_no_records(place: Traced) -> None:
    with place.file(b"x" * MIB, os.O_RDONLY) as fd, place.file(b"x" * MIB, os.O_RDONLY | os.O_DIRECT) as direct:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert len(os.pread(fd, 2 * MIB, 0)) == MIB
        with aligned(16 * BLOCK, 0) as memory:
            assert os.preadv(direct, [memory], 0) == 16 * BLOCK
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[5000] == ord("x")
        os.lseek(fd, 0, os.SEEK_DATA)
        os.fsync(fd)
        path.stat()
        os.listdir(place.root)
        os.listxattr(path)
        assert path.read_bytes()[:1] == b"x"
        assert len(place.drain()) == 0


def test_reading_inodes_from_disk_makes_no_records(place: Traced) -> None:
    directory = place.root / "cold"
    directory.mkdir()
    for index in range(20):
        (directory / str(index)).write_bytes(b"x" * 100)
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    place.drain()
    for index in range(20):
        assert (directory / str(index)).stat().st_size == 100
    assert len(place.drain()) == 0


def test_other_filesystems_make_no_records(place: Traced, tmp_path: Path) -> None:
    place.drain()
    (tmp_path / "elsewhere").write_bytes(b"x" * 10_000)
    (tmp_path / "elsewhere").chmod(0o600)
    assert len(place.drain()) == 0

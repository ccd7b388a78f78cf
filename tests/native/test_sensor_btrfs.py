"""The sensor on btrfs: every way in which bytes change is told, with their place; nothing else is."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.capture.event import EventFlag, EventKind
from tests.support import syscalls
from tests.support.filesystems import filesystem, run
from tests.support.operations import BLOCK, KIB, MIB, Operation, Unsupported, content, opened, operations, prepare
from tests.support.replay import Replay
from tests.support.storm import storm

pytestmark = pytest.mark.native

_FIDEDUPERANGE = 0xC0189436
_ENCODED_WRITE = 0x40809440
_ZLIB = 1
_SLACK = 2 * BLOCK
"""Zeroed rests of blocks at the ends of a hole or of the file."""


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    directory = tmp_path_factory.mktemp("btrfs")
    with filesystem("btrfs", directory) as point, Replay("btrfs", point, directory / "copies") as replay:
        yield replay


@pytest.fixture
def place(replay: Replay, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of the test's own."""
    path = replay.point / request.node.name.replace("/", "-")
    path.mkdir()
    yield path
    run("rm", "-rf", path)
    replay.records()


def test_every_hook_is_attached(replay: Replay) -> None:
    missing = [item for item in replay.sensor.coverage() if item.family == "btrfs" and not item.covered]
    assert missing == []


@pytest.mark.parametrize("written_out", [True, False], ids=["clean", "dirty"])
@pytest.mark.parametrize("row", operations, ids=lambda row: row.name)
def test_write_path(replay: Replay, place: Path, row: Operation, written_out: bool) -> None:
    """Dirty pages are written out within the call, all that follow each other at once: no news of theirs."""
    scene = prepare(place, row.size)
    if written_out:
        os.sync()
    replay.start(scene.file, scene.donor)
    try:
        for allowed in row.run(scene):
            born = sum(path.stat().st_size for path in place.iterdir() if path.stat().st_nlink and path.name == "new")
            assert replay.follow(*place.iterdir()) <= allowed + born + _SLACK
    except Unsupported:
        assert replay.follow(*place.iterdir()) <= _SLACK


@pytest.mark.parametrize("seed", range(4))
def test_random_changes(replay: Replay, place: Path, seed: int) -> None:
    """Looked at after each change, and after several."""
    scene = prepare(place)
    replay.start(scene.file, scene.donor)
    for turn, change in enumerate(storm(scene.file, scene.donor, "btrfs", seed, 250)):
        if seed < 2 or turn % 7 == 0:
            try:
                replay.follow(scene.file)
            except AssertionError as missed:
                raise AssertionError(change) from missed


def test_reads_and_writeback_tell_nothing(replay: Replay, place: Path) -> None:
    scene = prepare(place, 4 * MIB)
    os.sync()
    replay.records()
    Path("/proc/sys/vm/drop_caches").write_text("1")
    scene.file.read_bytes()
    with opened(scene.file) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(fd, 0, os.SEEK_HOLE)
        with mmap.mmap(fd, 4 * MIB, prot=mmap.PROT_READ) as mapping:
            assert len(mapping[:]) == 4 * MIB
        os.pwrite(fd, content(200 * KIB), 77)
        replay.records()
        os.fsync(fd)
        os.sync()
    with opened(scene.file, os.O_RDONLY | os.O_DIRECT) as fd, mmap.mmap(-1, MIB) as buffer:
        assert os.preadv(fd, [buffer], 0) == MIB
    assert replay.of(scene.file) == []


def _make(path: Path, attribute: str) -> None:
    path.touch()
    run("chattr", f"+{attribute}", path)


@pytest.mark.parametrize("letter", ["c", "C"], ids=["compressed", "nodatacow"])
def test_written_with_attribute(replay: Replay, place: Path, letter: str) -> None:
    file = place / "file"
    _make(file, letter)
    replay.start(file)
    with opened(file) as fd:
        os.pwrite(fd, b"abc" * 200_000, 0)
        assert replay.follow(file) <= 600_000 + BLOCK
        os.fsync(fd)
        assert replay.follow(file) == 0
        os.pwrite(fd, b"over", 100_000)
        assert replay.follow(file) == BLOCK
        syscalls.fallocate(fd, syscalls.PUNCH_HOLE | syscalls.KEEP_SIZE, 200_000, 50_000)
        assert replay.follow(file) <= 4 * BLOCK
        os.ftruncate(fd, 150_000)
        os.ftruncate(fd, 160_000)
        assert replay.follow(file) <= 2 * BLOCK
        with mmap.mmap(fd, 160_000) as mapping:
            mapping[5000:5003] = b"map"
            assert replay.follow(file) <= BLOCK


def test_direct_write_without_copy_on_write(replay: Replay, place: Path) -> None:
    """The one case in which btrfs writes past the page cache."""
    file = place / "file"
    _make(file, "C")
    file.write_bytes(content(MIB))
    os.sync()
    replay.start(file)
    with opened(file, os.O_RDWR | os.O_DIRECT) as fd, mmap.mmap(-1, 8 * KIB) as buffer:
        buffer[:] = content(8 * KIB, 5)
        os.pwritev(fd, [buffer], 64 * KIB)
        assert replay.follow(file) == 8 * KIB
        os.pwritev(fd, [buffer], MIB)
        assert replay.follow(file) == 8 * KIB


def test_small_file_inside_its_inode(replay: Replay, place: Path) -> None:
    file, clone = place / "file", place / "clone"
    file.write_bytes(b"inline " * 20)
    clone.touch()
    os.sync()
    replay.start(file, clone)
    with opened(file) as fd:
        os.pwrite(fd, b"XY", 10)
        replay.follow(file)
        os.fsync(fd)
        os.ftruncate(fd, 50)
        os.ftruncate(fd, 90)
        replay.follow(file)
        with opened(clone) as other:
            syscalls.clone(other, fd)
        replay.follow(file, clone)


@pytest.mark.parametrize("extend", ["truncate", "write"])
def test_lowest_size_is_exact(replay: Replay, place: Path, extend: str) -> None:
    for cut in (os.truncate, _ftruncate):
        file = place / "file"
        file.write_bytes(content(MIB))
        replay.records()
        cut(file, 300_001)
        cut(file, 5_003)
        if extend == "truncate":
            cut(file, 900_000)
        else:
            with opened(file) as fd:
                os.pwrite(fd, b"far", 900_000)
        sizes = [record["off"] for record in replay.of(file) if record["kind"] == EventKind.SIZE]
        assert min(sizes) == 5_003
    replay.records()
    os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))
    assert min(record["off"] for record in replay.of(file)) == 0


def _ftruncate(path: Path, size: int) -> None:
    with opened(path) as fd:
        os.ftruncate(fd, size)


def test_store_again_after_writeback_is_told_again(replay: Replay, place: Path) -> None:
    file = place / "file"
    file.write_bytes(content(MIB))
    with opened(file) as fd, mmap.mmap(fd, MIB) as mapping:
        for turn in range(3):
            os.fdatasync(fd)
            replay.records()
            mapping[300_000 + turn] = 65
            told = [record for record in replay.of(file) if record["kind"] == EventKind.FOLIO]
            assert {(record["off"], record["len"]) for record in told} == {(299_008, BLOCK)}
            assert all(record["flags"] & EventFlag.MAPPED for record in told)


def test_encoded_write(replay: Replay, place: Path) -> None:
    """As `btrfs receive` does: compressed extents straight into the file."""
    file = place / "file"
    file.write_bytes(content(512 * KIB))
    os.sync()
    replay.start(file)
    plain = b"encoded " * (8 * KIB)
    packed = zlib.compress(plain)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    vector = struct.pack("=QQ", ctypes.addressof(buffer), len(packed))
    vectors = ctypes.create_string_buffer(vector, len(vector))
    order = struct.pack(
        "=QQqQQQQII64x", ctypes.addressof(vectors), 1, 128 * KIB, 0, len(plain), len(plain), 0, _ZLIB, 0
    )
    with opened(file) as fd:
        fcntl.ioctl(fd, _ENCODED_WRITE, order)
    assert file.read_bytes()[128 * KIB : 192 * KIB] == plain
    assert replay.follow(file) == len(plain)


def test_clone_tells_nothing_of_its_dirty_source(replay: Replay, place: Path) -> None:
    scene = prepare(place)
    os.sync()
    with opened(scene.donor) as donor, opened(scene.file) as fd:
        os.pwrite(donor, content(128 * KIB, 3), 0)
        replay.start(scene.file, scene.donor)
        syscalls.clone_range(fd, donor, 0, 64 * KIB, 128 * KIB)
        told = replay.records()
        inodes = {record["ino"] for record in told}
        assert os.fstat(fd).st_ino in inodes
        assert os.fstat(donor).st_ino not in inodes
        assert any(record["flags"] & EventFlag.HOLES for record in told)


def test_rename_over_a_file_tells_nothing_of_dirty_bytes(replay: Replay, place: Path) -> None:
    scene = prepare(place)
    replay.start(scene.file)
    scene.file.replace(scene.donor)
    assert replay.follow(scene.donor) == 0


def test_clone_to_the_end_of_its_source(replay: Replay, place: Path) -> None:
    """A length of 0, into a file that is dirty and goes on behind."""
    scene = prepare(place)
    replay.start(scene.file, scene.donor)
    with opened(scene.donor) as donor, opened(scene.file) as fd:
        syscalls.clone_range(fd, donor, 64 * KIB, 0, 128 * KIB)
    assert replay.follow(scene.file, scene.donor) == 192 * KIB


def test_copy_at_the_position_of_a_dirty_file(replay: Replay, place: Path) -> None:
    """Others can move the position meanwhile, so that it says nothing: too much is told rather than too little."""
    scene = prepare(place)
    replay.start(scene.file)
    with opened(scene.donor) as donor, opened(scene.file) as fd:
        os.lseek(fd, 256 * KIB, os.SEEK_SET)
        os.copy_file_range(donor, fd, 64 * KIB, 0)
    assert 64 * KIB <= replay.follow(scene.file) <= MIB


def test_moved_extents_with_the_same_bytes_are_not_told(replay: Replay, place: Path) -> None:
    one, other = place / "one", place / "other"
    one.write_bytes(content(256 * KIB))
    other.write_bytes(content(256 * KIB))
    os.sync()
    replay.start(one, other)
    with opened(one) as source, opened(other) as target:
        same = bytearray(struct.pack("=QQHHIqQQiI", 0, 128 * KIB, 1, 0, 0, target, 0, 0, 0, 0))
        fcntl.ioctl(source, _FIDEDUPERANGE, same)
        assert struct.unpack_from("=Qi", same, 40) == (128 * KIB, 0)
    run("btrfs", "filesystem", "defragment", "-f", one)
    assert replay.follow(one, other) == 0


def test_subvolumes_are_told_apart(replay: Replay, place: Path) -> None:
    for name in ("first", "second"):
        run("btrfs", "subvolume", "create", place / name)
        (place / name / "file").write_bytes(b"x")
    replay.records()
    for name in ("first", "second"):
        with opened(place / name / "file") as fd:
            os.pwrite(fd, b"y", 0)
    told = [record for record in replay.records() if record["kind"] == EventKind.WRITE]
    assert len({record["ino"] for record in told}) == 1
    assert len({record["root"] for record in told}) == 2
    assert min(record["root"] for record in told) >= 256


def test_discard_through_a_loop_device(replay: Replay, place: Path) -> None:
    """A kernel thread writes and punches; no system call tells."""
    image = place / "image"
    image.write_bytes(content(4 * MIB))
    os.sync()
    device = run("losetup", "--find", "--show", image).strip()
    try:
        replay.start(image)
        with opened(Path(device)) as fd:
            os.pwrite(fd, content(BLOCK, 9), MIB)
            os.fsync(fd)
        run("blkdiscard", "--force", "--offset", str(2 * MIB), "--length", str(64 * KIB), device)
        assert replay.follow(image) <= 128 * KIB
    finally:
        run("losetup", "--detach", device)


_PUNCHER = r"""
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
int main(int argc, char **argv)
{
	struct io_uring_cqe *cqe;
	struct io_uring ring;
	int fd = open(argv[1], O_RDWR);

	if (fd < 0 || io_uring_queue_init(8, &ring, 0))
		return 1;
	io_uring_prep_fallocate(io_uring_get_sqe(&ring), fd, atoi(argv[2]), atoll(argv[3]), atoll(argv[4]));
	return io_uring_submit_and_wait(&ring, 1) < 0 || io_uring_wait_cqe(&ring, &cqe) || cqe->res != 0;
}
"""


@pytest.mark.parametrize("mode", [syscalls.PUNCH_HOLE | syscalls.KEEP_SIZE, syscalls.ZERO_RANGE], ids=["punch", "zero"])
def test_fallocate_by_io_uring(replay: Replay, place: Path, tmp_path: Path, mode: int) -> None:
    program = tmp_path / "puncher"
    subprocess.run(["gcc", "-x", "c", "-o", program, "-", "-luring"], input=_PUNCHER.encode(), check=True)
    scene = prepare(place)
    os.sync()
    replay.start(scene.file)
    run(program, scene.file, str(mode), "100001", "50000")
    assert replay.follow(scene.file) <= 64 * KIB

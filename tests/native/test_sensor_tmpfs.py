"""The sensor on tmpfs: every write that leaves the kernel is told, with its place; stores through mappings once."""

from __future__ import annotations

import array
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.capture.event import EventFlag, EventKind
from tests.support import syscalls
from tests.support.filesystems import filesystem, run, unmount
from tests.support.operations import BLOCK, KIB, MIB, Operation, Unsupported, content, opened, operations, prepare
from tests.support.replay import Replay
from tests.support.storm import storm

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    directory = tmp_path_factory.mktemp("tmpfs")
    with filesystem("tmpfs", directory) as point, Replay("tmpfs", point, directory / "copies") as replay:
        yield replay


@pytest.fixture
def place(replay: Replay, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of the test's own."""
    path = replay.point / request.node.name.replace("/", "-")
    path.mkdir()
    yield path
    run("rm", "-rf", path)
    replay.records()


def spans(replay: Replay, path: Path) -> list[tuple[int, int, int]]:
    """Kind, offset and length of the new records of a file that are not about its attributes."""
    return [
        (record["kind"], record["off"], record["len"])
        for record in replay.of(path)
        if record["kind"] not in (EventKind.ATTR, EventKind.SIZE)
    ]


def test_every_hook_is_attached(replay: Replay) -> None:
    covered = replay.sensor.coverage()
    assert [item for item in covered if item.family != "inode" and not item.covered] == []
    assert {item.family for item in covered} == {"inode", "tmpfs", "results", "requests", "faults"}


@pytest.mark.parametrize("row", [row for row in operations if not row.mapped], ids=lambda row: row.name)
def test_write_path(replay: Replay, place: Path, row: Operation) -> None:
    scene = prepare(place, row.size)
    replay.start(scene.file, scene.donor)
    try:
        for allowed in row.run(scene):
            born = sum(path.stat().st_size for path in place.iterdir() if path.name == "new")
            assert replay.follow(*place.iterdir()) <= allowed + born
    except Unsupported:
        assert replay.follow(*place.iterdir()) == 0


def test_a_single_write_is_told_to_the_byte(replay: Replay, place: Path) -> None:
    file, donor = place / "file", place / "donor"
    file.write_bytes(content(MIB))
    donor.write_bytes(content(100 * KIB))
    reader, writer = os.pipe()
    os.write(writer, bytes(700))
    told = EventKind.WRITE
    with opened(file) as fd, opened(donor) as other:
        replay.records()
        os.pwrite(fd, b"x" * 10, 5_000_000_000)
        assert spans(replay, file) == [(told, 5_000_000_000, 10)]
        os.ftruncate(fd, MIB)
        os.lseek(fd, 777, os.SEEK_SET)
        os.writev(fd, [b"ab", b"cde"])
        assert spans(replay, file) == [(told, 777, 5)]
        os.pwritev(fd, [b"ab", b"cde"], 99, os.RWF_APPEND)
        assert spans(replay, file) == [(told, MIB, 5)]
        os.sendfile(fd, other, 0, 300)
        assert spans(replay, file) == [(told, 782, 300)]
        os.splice(reader, fd, 600, None, 3_000)
        assert spans(replay, file) == [(told, 3_000, 600)]
        os.splice(reader, fd, 100)
        assert spans(replay, file) == [(told, 1_082, 100)]
        os.copy_file_range(other, fd, 400, 0, 9_001)
        assert spans(replay, file) == [(told, 9_001, 400)]
        os.copy_file_range(other, fd, 400, 0)
        assert spans(replay, file) == [(told, 1_182, 400)]
    with opened(file, os.O_WRONLY | os.O_APPEND) as fd:
        os.pwrite(fd, b"end", 0)
        assert spans(replay, file) == [(told, MIB + 5, 3)]
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("seed", range(4))
def test_random_changes(replay: Replay, place: Path, seed: int) -> None:
    """Looked at after each change, and after several."""
    scene = prepare(place)
    replay.start(scene.file, scene.donor)
    for turn, change in enumerate(storm(scene.file, scene.donor, "tmpfs", seed, 250)):
        if seed < 2 or turn % 7 == 0:
            try:
                replay.follow(scene.file)
            except AssertionError as missed:
                raise AssertionError(change) from missed


def test_reads_tell_nothing(replay: Replay, place: Path) -> None:
    scene = prepare(place)
    replay.records()
    scene.file.read_bytes()
    with opened(scene.file) as fd, opened(scene.donor) as other:
        os.lseek(fd, 5, os.SEEK_SET)
        os.copy_file_range(fd, other, 10, 0, 0)
        os.fsync(fd)
        with mmap.mmap(fd, MIB, prot=mmap.PROT_READ) as mapping:
            assert len(mapping[:]) == MIB
        with pytest.raises(OSError):
            os.pwrite(fd, b"x", -1)
    assert replay.of(scene.file) == []


def test_lowest_size_is_exact(replay: Replay, place: Path) -> None:
    file = place / "file"
    file.write_bytes(content(MIB))
    with opened(file) as fd:
        for cut in (lambda size: os.truncate(file, size), lambda size: os.ftruncate(fd, size)):
            replay.records()
            for size in (300_001, 5_003, 900_000):
                cut(size)
            sizes = [record["off"] for record in replay.of(file) if record["kind"] == EventKind.SIZE]
            assert min(sizes) == 5_003
    os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))
    assert min(record["off"] for record in replay.of(file) if record["kind"] == EventKind.SIZE) == 0


def test_growth_by_fallocate_is_told(replay: Replay, place: Path) -> None:
    """It leaves the ctime alone."""
    file = place / "file"
    file.write_bytes(b"x")
    replay.records()
    with opened(file) as fd:
        syscalls.fallocate(fd, 0, 0, 50_000)
    assert 50_000 in {record["off"] for record in replay.of(file) if record["kind"] == EventKind.SIZE}


@pytest.mark.parametrize(
    "mode", [syscalls.ZERO_RANGE, syscalls.COLLAPSE_RANGE, syscalls.INSERT_RANGE], ids=["zero", "collapse", "insert"]
)
def test_a_refused_fallocate_tells_nothing(replay: Replay, place: Path, mode: int) -> None:
    scene = prepare(place)
    replay.records()
    with opened(scene.file) as fd, pytest.raises(OSError):
        syscalls.fallocate(fd, mode, 0, 64 * KIB)
    assert replay.of(scene.file) == []


_SEEKER = r"""
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>
static int fd;
static volatile int stop;
static void *seek(void *unused)
{
	for (unsigned long x = 1; !stop; x = x * 6364136223846793005UL + 1442695040888963407UL)
		lseek(fd, (x >> 33) % 200000 * 8, SEEK_SET);
	return unused;
}
int main(int argc, char **argv)
{
	pthread_t thread;

	fd = open(argv[1], O_RDWR);
	if (fd < 0 || pthread_create(&thread, 0, seek, 0))
		return 2;
	for (unsigned long i = 1; i <= 30000; i++)
		if (write(fd, &i, 8) != 8)
			return 1;
	stop = 1;
	return pthread_join(thread, 0);
}
"""


def test_writer_and_seeker_on_one_descriptor(replay: Replay, place: Path, tmp_path: Path) -> None:
    """Wherever a write went, its own record covers the place, or says that it is not known."""
    program = tmp_path / "seeker"
    subprocess.run(["gcc", "-O2", "-x", "c", "-o", program, "-", "-pthread"], input=_SEEKER.encode(), check=True)
    file = place / "file"
    file.write_bytes(bytes(8))
    replay.records()
    run(program, file)
    told = [record for record in replay.of(file) if record["kind"] in (EventKind.WRITE, EventKind.WHOLE)]
    assert len(told) == 30_000
    survivors = 0
    for offset, number in enumerate(array.array("Q", file.read_bytes())):
        if number:
            survivors += 1
            record = told[number - 1]
            at = 8 * offset
            assert record["kind"] == EventKind.WHOLE or record["off"] <= at < record["off"] + record["len"], (
                at,
                record,
            )
    assert survivors > 1_000


_BATCH = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <libaio.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	static char data[5000];
	struct iovec parts[2] = { { data, 300 }, { data, 400 } };
	struct iocb write, vector, append, *list[3] = { &write, &vector, &append };
	io_context_t context = 0;
	struct io_event events[3];
	int fd = open(argv[1], O_RDWR), end = open(argv[1], O_RDWR | O_APPEND);

	memset(data, 'a', sizeof(data));
	io_prep_pwrite(&write, fd, data, 5000, 10001);
	io_prep_pwritev(&vector, fd, parts, 2, 70001);
	io_prep_pwrite(&append, end, data, 900, 0);
	if (io_setup(8, &context) || io_submit(context, 3, list) != 3)
		return 1;
	return io_getevents(context, 3, 3, events, 0) != 3;
}
"""


def test_batch_of_libaio(replay: Replay, place: Path, tmp_path: Path) -> None:
    program = tmp_path / "batch"
    subprocess.run(["gcc", "-x", "c", "-o", program, "-", "-laio"], input=_BATCH.encode(), check=True)
    file = place / "file"
    file.write_bytes(bytes(100_000))
    replay.records()
    run(program, file)
    told = EventKind.WRITE
    assert spans(replay, file) == [(told, 10_001, 5_000), (told, 70_001, 700), (told, 100_000, 900)]


_MANY = r"""
#include <fcntl.h>
#include <libaio.h>
int main(int argc, char **argv)
{
	static struct iocb writes[200], *list[200];
	static struct io_event events[200];
	static char data[100];
	io_context_t context = 0;
	int fd = open(argv[1], O_RDWR);

	for (int i = 0; i < 200; i++) {
		list[i] = &writes[i];
		io_prep_pwrite(&writes[i], i == 150 ? -1 : fd, data, 10 + i % 50, 1000 * i);
	}
	/* one in between has no file: the call ends there */
	if (io_setup(200, &context) || io_submit(context, 200, list) != 150)
		return 1;
	return io_getevents(context, 150, 150, events, 0) != 150;
}
"""


def test_long_batch_of_libaio_that_ends_early(replay: Replay, place: Path, tmp_path: Path) -> None:
    program = tmp_path / "many"
    subprocess.run(["gcc", "-x", "c", "-o", program, "-", "-laio"], input=_MANY.encode(), check=True)
    file = place / "file"
    file.write_bytes(bytes(200_000))
    replay.records()
    for _ in range(2):
        run(program, file)
        assert spans(replay, file) == [(EventKind.WRITE, 1000 * i, 10 + i % 50) for i in range(150)]


_COMPAT = r"""
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
int main(int argc, char **argv)
{
	char *low = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	int fd = open(argv[1], O_RDWR);
	int done;

	if (fd < 0 || low == MAP_FAILED)
		return 2;
	memset(low, 'c', 100);
	/* write(2) of the 32-bit ABI */
	__asm__ volatile("int $0x80" : "=a"(done) : "a"(4), "b"(fd), "c"(low), "d"(100) : "memory");
	return done != 100;
}
"""


def test_system_call_of_the_32_bit_abi(replay: Replay, place: Path, tmp_path: Path) -> None:
    program = tmp_path / "compat"
    subprocess.run(["gcc", "-x", "c", "-o", program, "-"], input=_COMPAT.encode(), check=True)
    file = place / "file"
    file.write_bytes(bytes(10_000))
    replay.start(file)
    run(program, file)
    replay.follow(file)
    assert file.read_bytes()[:100] == b"c" * 100


def test_writes_of_a_loop_device(replay: Replay, place: Path) -> None:
    """A kernel thread writes and punches; no system call tells."""
    image = place / "image"
    image.write_bytes(content(2 * MIB))
    device = run("losetup", "--find", "--show", image).strip()
    try:
        replay.start(image)
        with opened(Path(device)) as fd:
            os.pwrite(fd, content(BLOCK, 9), MIB)
            os.fsync(fd)
        replay.follow(image)
        run("blkdiscard", "--force", "--offset", str(MIB), "--length", str(64 * KIB), device)
        replay.follow(image)
    finally:
        run("losetup", "--detach", device)


def test_writes_through_an_overlay(replay: Replay, place: Path, tmp_path: Path) -> None:
    """The descriptor is another filesystem's."""
    lower, merged = tmp_path / "lower", tmp_path / "merged"
    for path in (lower, merged, place / "upper", place / "work"):
        path.mkdir()
    file = place / "upper" / "file"
    file.write_bytes(content(64 * KIB))
    options = f"lowerdir={lower},upperdir={place / 'upper'},workdir={place / 'work'}"
    run("mount", "-t", "overlay", "-o", options, "overlay", merged)
    try:
        replay.start(file)
        for turn in range(20):
            with opened(merged / "file") as fd:
                os.pwrite(fd, bytes([turn + 1]) * 10, 5_000)
            replay.follow(file)
    finally:
        unmount(merged)


def test_first_store_through_a_mapping(replay: Replay, place: Path) -> None:
    file, donor = place / "file", place / "donor"
    file.touch()
    donor.write_bytes(content(BLOCK))
    with opened(file) as fd, opened(donor) as other:
        os.ftruncate(fd, MIB)
        with mmap.mmap(fd, 256 * KIB, offset=512 * KIB) as mapping:
            replay.records()
            mapping[100_000] = 1
            assert spans(replay, file) == [(EventKind.FOLIO, 512 * KIB + 100_000 // BLOCK * BLOCK, BLOCK)]
            os.preadv(other, [memoryview(mapping)[200_000:200_010]], 0)
            assert spans(replay, file) == [(EventKind.FOLIO, 512 * KIB + 200_000 // BLOCK * BLOCK, BLOCK)]
            os.pwrite(fd, b"x", 0)
            told = [record for record in replay.of(file) if record["kind"] == EventKind.WRITE]
            assert [record["flags"] & EventFlag.MAPPED for record in told] == [EventFlag.MAPPED]


def test_a_private_mapping_tells_nothing(replay: Replay, place: Path) -> None:
    file = place / "file"
    file.write_bytes(content(MIB))
    with opened(file) as fd, mmap.mmap(fd, MIB, flags=mmap.MAP_PRIVATE) as mapping:
        replay.records()
        mapping[300_000] = 1
        assert replay.of(file) == []

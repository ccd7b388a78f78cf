"""Every way in which bytes of a file change, as steps that a test can stop after.

Takes a scene (a prepared file, a donor file beside it); each operation is a generator that does one step and yields
how many bytes that step may put on the wire: what it touched, rounded to blocks. What the kernel refuses for this
filesystem is `Unsupported`. Knows nothing of the product.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import random
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import syscalls
from tests.support.deadline import SLOW
from tests.support.helpers import Mapper, call

BLOCK = 4096
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

FOLIO = 2 * MIB
"""The largest unit in which the first store through a mapping is seen."""
BURST = 64 * KIB
"""More for operations of many small writes: each flush in between has its facts and rounds to blocks again."""

REFUSALS = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY})
"""How a kernel says that a filesystem cannot do it."""


class Unsupported(Exception):
    """This kernel cannot do an operation on this filesystem; it said so itself."""


@dataclass(frozen=True)
class Scene:
    """Where an operation happens."""

    file: Path
    donor: Path
    """Another file in the tree, `DONOR_SIZE` bytes, to copy from."""
    size: int
    """Of `file`, when prepared."""


Steps = Callable[[Scene], Iterator[int]]

DONOR_SIZE = 256 * KIB


@dataclass(frozen=True)
class Operation:
    """One row of the table of write paths."""

    name: str
    steps: Steps
    size: int = MIB
    holes: bool = False
    """Whether the replica must have the same holes afterwards."""
    mapped: bool = False
    """Stores through a mapping: nothing on tmpfs can show them."""

    def run(self, scene: Scene) -> Iterator[int]:
        """The steps. `Unsupported` from the step that this kernel refuses."""
        try:
            yield from self.steps(scene)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            raise Unsupported(f"{self.name}: {error}") from error


operations: list[Operation] = []


def operation(size: int = MIB, holes: bool = False, mapped: bool = False) -> Callable[[Steps], Steps]:
    """Enter a generator into the table under its own name."""

    def enter(steps: Steps) -> Steps:
        operations.append(Operation(steps.__name__, steps, size, holes, mapped))
        return steps

    return enter


@functools.lru_cache(maxsize=32)
def content(size: int, seed: int = 0) -> bytes:
    """`size` bytes without a pattern, the same ones each time."""
    return random.Random(seed).randbytes(size)


def prepare(directory: Path, size: int = MIB) -> Scene:
    """Make the scene's files in `directory`, both with data everywhere."""
    scene = Scene(directory / "file", directory / "donor", size)
    scene.file.write_bytes(content(size, 1))
    scene.donor.write_bytes(content(DONOR_SIZE, 2))
    return scene


def touched(*ranges: tuple[int, int]) -> int:
    """The bytes of the blocks that the (offset, length) ranges lie in."""
    blocks = {block for start, length in ranges for block in range(start // BLOCK, -(-(start + length) // BLOCK))}
    return len(blocks) * BLOCK


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    """A descriptor of `path`, made with mode 0644 if it is made."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


AT, LENGTH = 300_001, 5_000
"""Where the simple writes go: neither end on a block."""


@operation()
def write(scene: Scene) -> Iterator[int]:
    with opened(scene.file) as fd:
        os.lseek(fd, AT, os.SEEK_SET)
        os.write(fd, content(LENGTH))
    yield touched((AT, LENGTH))


@operation()
def pwrite(scene: Scene) -> Iterator[int]:
    with opened(scene.file) as fd:
        os.pwrite(fd, content(LENGTH), AT)
        yield touched((AT, LENGTH))
        os.pwrite(fd, b"x", 0)
        yield touched((0, 1))


@operation()
def writev(scene: Scene) -> Iterator[int]:
    data = content(LENGTH)
    with opened(scene.file) as fd:
        os.lseek(fd, AT, os.SEEK_SET)
        os.writev(fd, [data[:1000], data[1000:1001], data[1001:]])
    yield touched((AT, LENGTH))


@operation()
def pwritev2(scene: Scene) -> Iterator[int]:
    data = content(LENGTH)
    with opened(scene.file) as fd:
        os.pwritev(fd, [data[:1000], data[1000:]], AT, os.RWF_DSYNC)
    yield touched((AT, LENGTH))


@operation()
def append_from_two_processes(scene: Scene) -> Iterator[int]:
    call("writers", scene.file, "append", 200, 100)
    yield touched((scene.size, 40_000)) + BURST


@operation()
def two_threads_sharing_a_descriptor(scene: Scene) -> Iterator[int]:
    call("writers", scene.file, "shared", 200, 100)
    yield touched((0, 40_000)) + BURST


@operation()
def sendfile(scene: Scene) -> Iterator[int]:
    with opened(scene.donor, os.O_RDONLY) as donor, opened(scene.file) as fd:
        os.lseek(fd, AT, os.SEEK_SET)
        assert os.sendfile(fd, donor, 11, 50_000) == 50_000
    yield touched((AT, 50_000))


@operation()
def splice_from_a_pipe(scene: Scene) -> Iterator[int]:
    end, start = os.pipe()
    try:
        os.write(start, content(LENGTH))
        with opened(scene.file) as fd:
            assert os.splice(end, fd, LENGTH, offset_dst=AT) == LENGTH
    finally:
        os.close(end)
        os.close(start)
    yield touched((AT, LENGTH))


@operation()
def copy_file_range(scene: Scene) -> Iterator[int]:
    """Cannot be a clone, which is tried first: dirty pages would be written out for it, under a lock that is told."""
    with opened(scene.donor, os.O_RDONLY) as donor, opened(scene.file) as fd:
        os.fsync(fd)
        assert os.copy_file_range(donor, fd, 50_000, 11, AT) == 50_000
    yield touched((AT, 50_000))


@operation()
def copy_file_range_of_whole_blocks(scene: Scene) -> Iterator[int]:
    with opened(scene.donor, os.O_RDONLY) as donor, opened(scene.file) as fd:
        assert os.copy_file_range(donor, fd, 64 * KIB, 4 * KIB, 128 * KIB) == 64 * KIB
    yield touched((128 * KIB, 64 * KIB))


@operation()
def clone(scene: Scene) -> Iterator[int]:
    with opened(scene.donor, os.O_RDONLY) as donor, opened(scene.file) as fd:
        syscalls.clone(fd, donor)
    yield touched((0, DONOR_SIZE))


@operation()
def clone_range(scene: Scene) -> Iterator[int]:
    with opened(scene.donor, os.O_RDONLY) as donor, opened(scene.file) as fd:
        syscalls.clone_range(fd, donor, 64 * KIB, 64 * KIB, 512 * KIB)
    yield touched((512 * KIB, 64 * KIB))


def _fallocate(mode: int, offset: int, length: int, may_cost: int) -> Steps:
    def steps(scene: Scene) -> Iterator[int]:
        with opened(scene.file) as fd:
            syscalls.fallocate(fd, mode, offset, length)
        yield may_cost

    return steps


_PUNCH = syscalls.PUNCH_HOLE | syscalls.KEEP_SIZE
_ZERO_KEEP = syscalls.ZERO_RANGE | syscalls.KEEP_SIZE
_END = 896 * KIB
"""Collapse and insert happen here, 128 KiB before the end, and cost the rest of the file."""
operations += [
    Operation("fallocate_beyond_the_end", _fallocate(0, MIB, 64 * KIB, touched((MIB, 64 * KIB)))),
    Operation("fallocate_within", _fallocate(0, 64 * KIB, 64 * KIB, touched((64 * KIB, 64 * KIB)))),
    Operation("fallocate_keep_size", _fallocate(syscalls.KEEP_SIZE, MIB, 64 * KIB, touched((MIB, 64 * KIB)))),
    Operation("punch_hole", _fallocate(_PUNCH, 128 * KIB, 512 * KIB, 0), holes=True),
    Operation("punch_hole_off_blocks", _fallocate(_PUNCH, AT, 9_000, touched((AT, 9_000)))),
    Operation("zero_range", _fallocate(syscalls.ZERO_RANGE, AT, 50_000, touched((AT, 50_000)))),
    Operation("zero_range_past_the_end", _fallocate(_ZERO_KEEP, _END, 256 * KIB, touched((_END, 128 * KIB)))),
    Operation("collapse_range", _fallocate(syscalls.COLLAPSE_RANGE, _END, 64 * KIB, touched((_END, 64 * KIB)))),
    Operation("insert_range", _fallocate(syscalls.INSERT_RANGE, _END, 64 * KIB, touched((_END, 192 * KIB)))),
]


@operation(holes=True)
def ftruncate_up(scene: Scene) -> Iterator[int]:
    with opened(scene.file) as fd:
        os.ftruncate(fd, scene.size + 3 * MIB + 1)
    yield 0


@operation()
def ftruncate_down(scene: Scene) -> Iterator[int]:
    with opened(scene.file) as fd:
        os.ftruncate(fd, 12_345)
    yield touched((12_345, 1))


@operation()
def truncate(scene: Scene) -> Iterator[int]:
    os.truncate(scene.file, 700_001)
    yield touched((700_001, 1))
    os.truncate(scene.file, 700_000)
    yield touched((700_000, 1))


@operation()
def open_with_truncation(scene: Scene) -> Iterator[int]:
    with opened(scene.file, os.O_WRONLY | os.O_TRUNC):
        pass
    yield 0
    with opened(scene.file, os.O_WRONLY | os.O_TRUNC) as fd:
        os.write(fd, content(LENGTH))
    yield touched((0, LENGTH))


@operation()
def truncate_down_then_extend(scene: Scene) -> Iterator[int]:
    """The old bytes between the two sizes must not come back."""
    with opened(scene.file) as fd:
        os.ftruncate(fd, 10_000)
        os.ftruncate(fd, scene.size)
    yield touched((10_000, 1))


@operation()
def truncate_down_then_write_far(scene: Scene) -> Iterator[int]:
    with opened(scene.file) as fd:
        os.ftruncate(fd, 10_000)
        os.pwrite(fd, content(LENGTH), 600_000)
    yield touched((10_000, 1), (600_000, LENGTH))


@operation(size=4 * MIB, mapped=True)
def store_through_a_mapping(scene: Scene) -> Iterator[int]:
    with Mapper(scene.file) as mapper:
        mapper.map(0, scene.size)
        mapper.store(3 * MIB + 17, 1, 1)
        yield FOLIO
        mapper.store(3 * MIB + 17, 1, 2)
        yield touched((3 * MIB + 17, 1))
        mapper.store(3 * MIB + 40_000, 3, 3)
        yield touched((3 * MIB + 40_000, 3))


@operation(size=4 * MIB, mapped=True)
def store_through_a_mapping_with_msync(scene: Scene) -> Iterator[int]:
    with Mapper(scene.file) as mapper:
        mapper.map(MIB, 2 * MIB)
        mapper.store(2 * MIB - 3, 10, 1)
        mapper.msync()
        yield 2 * FOLIO
        mapper.store(2 * MIB - 3, 10, 2)
        mapper.msync()
        yield touched((2 * MIB - 3, 10))


@operation(size=4 * MIB, mapped=True)
def store_then_close_and_unmap(scene: Scene) -> Iterator[int]:
    with Mapper(scene.file) as mapper:
        mapper.map(0, scene.size)
        mapper.close()
        mapper.store(5, 5, 7)
        mapper.munmap()
        yield FOLIO


@operation(size=4 * MIB, mapped=True)
def store_into_a_page_dirtied_by_write(scene: Scene) -> Iterator[int]:
    with Mapper(scene.file) as mapper:
        mapper.map(0, scene.size)
        mapper.write(MIB, 100, 1)
        mapper.store(MIB + 100, 100, 2)
        yield 2 * FOLIO
        mapper.write(MIB, 100, 3)
        mapper.store(MIB + 100, 100, 4)
        yield touched((MIB, 200)) * 2


@operation(size=4 * MIB, mapped=True)
def store_and_grow(scene: Scene) -> Iterator[int]:
    """A mapping beyond the old end of the file."""
    with opened(scene.file) as fd:
        os.ftruncate(fd, scene.size + 64 * KIB)
        with mmap.mmap(fd, scene.size + 64 * KIB) as mapping:
            mapping[scene.size + 100 : scene.size + 200] = content(100)
            yield FOLIO


def _uring(kind: str, *quiet: str) -> Steps:
    def steps(scene: Scene) -> Iterator[int]:
        call("uring_write", scene.file, kind, AT, LENGTH, 1, *quiet)
        yield touched((AT, LENGTH))
        call("uring_write", scene.file, kind, scene.size, LENGTH, 2, *quiet)
        yield touched((scene.size, LENGTH))

    return steps


def _aio(kind: str) -> Steps:
    def steps(scene: Scene) -> Iterator[int]:
        call("aio_write", scene.file, kind, 64 * KIB, 8 * KIB, 1)
        yield touched((64 * KIB, 8 * KIB))

    return steps


operations += [
    *(Operation(f"io_uring_{kind}", _uring(kind)) for kind in ("write", "writev", "write_fixed")),
    Operation("io_uring_without_completion", _uring("write", "quiet")),
    Operation("libaio_buffered", _aio("buffered")),
    Operation("libaio_direct", _aio("direct")),
]


@operation()
def direct_pwrite(scene: Scene) -> Iterator[int]:
    with mmap.mmap(-1, 8 * KIB) as aligned, opened(scene.file, os.O_RDWR | os.O_DIRECT) as fd:
        aligned[:] = content(8 * KIB)
        assert os.pwritev(fd, [aligned], 512 * KIB) == 8 * KIB
        yield touched((512 * KIB, 8 * KIB))
        assert os.pwritev(fd, [aligned], scene.size) == 8 * KIB
        yield touched((scene.size, 8 * KIB))


@operation()
def written_out_afterwards(scene: Scene) -> Iterator[int]:
    """What the kernel does with old news (writing it to the disk) is no news."""
    with opened(scene.file) as fd:
        os.pwrite(fd, content(MIB), scene.size)
        yield touched((scene.size, MIB))
        os.fsync(fd)
        yield 0
        os.pwrite(fd, content(LENGTH), AT)
        yield touched((AT, LENGTH))
        syscalls.syncfs(fd)
        yield 0


@operation()
def unnamed_file_then_link(scene: Scene) -> Iterator[int]:
    with opened(scene.file.parent, os.O_RDWR | os.O_TMPFILE) as fd:
        os.write(fd, content(20_000))
        syscalls.link_descriptor(fd, scene.file.with_name("born"))
        yield touched((0, 20_000))
        os.pwrite(fd, b"later", 7)
        yield touched((7, 5))


@operation()
def write_on_after_rename(scene: Scene) -> Iterator[int]:
    with opened(scene.file) as fd:
        os.pwrite(fd, b"before", AT)
        scene.file.rename(scene.file.with_name("renamed"))
        os.pwrite(fd, b"after", AT + BLOCK)
        yield touched((AT, 2 * BLOCK))
        os.pwrite(fd, b"much later", AT)
        yield touched((AT, 10))


@operation()
def write_on_after_unlink(scene: Scene) -> Iterator[int]:
    with opened(scene.file) as fd:
        os.pwrite(fd, b"before", AT)
        scene.file.unlink()
        os.pwrite(fd, b"after", AT + BLOCK)
        yield touched((AT, 2 * BLOCK))
        os.pwrite(fd, b"much later", AT)
        yield touched((AT, 10))


@operation(holes=True)
def write_beyond_4_gib(scene: Scene) -> Iterator[int]:
    with opened(scene.file) as fd:
        os.pwrite(fd, content(LENGTH), 5 * GIB + 1)
        yield touched((5 * GIB + 1, LENGTH))
        os.pwrite(fd, b"low", 5)
        yield touched((5, 3))


@operation()
def write_in_another_mount_namespace(scene: Scene) -> Iterator[int]:
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *("dd", f"of={scene.file}", "bs=5000", "seek=60", "conv=notrunc", "status=none"),
        ],
        input=content(LENGTH),
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    yield touched((300_000, LENGTH))


@operation()
def write_through_a_bind_mount(scene: Scene) -> Iterator[int]:
    with tempfile.TemporaryDirectory(prefix="rsyncfs-bind-") as elsewhere:
        subprocess.run(["mount", "--bind", scene.file.parent, elsewhere], check=True)
        try:
            with opened(Path(elsewhere) / scene.file.name) as fd:
                os.pwrite(fd, content(LENGTH), AT)
            (Path(elsewhere) / "new").write_bytes(b"made through the bind mount")
        finally:
            subprocess.run(["umount", elsewhere], check=True)
    yield touched((AT, LENGTH)) + BLOCK


@operation()
def one_long_write(scene: Scene) -> Iterator[int]:
    """Long enough to be read while it runs, also on a slow machine; a quarter more for what is read twice then."""
    blocks = max(32, int(256 / SLOW))
    size = blocks * MIB
    with opened(scene.file) as fd:
        writer = threading.Thread(target=os.pwrite, args=(fd, content(MIB) * blocks, 0))
        writer.start()
        writer.join(120 * SLOW)
        assert os.fstat(fd).st_size == size
    yield size + size // 4

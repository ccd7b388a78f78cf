"""The system calls that Python lacks, on a real filesystem: effect, errno and path of each."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator import syscalls
from tests.support.filesystems import filesystem

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with filesystem("xfs", tmp_path_factory.mktemp("syscalls") / "volume", size=512 * 1024 * 1024) as point:
        yield point


@pytest.fixture
def tree(mounted: Path) -> Path:
    directory = mounted / str(time.monotonic_ns())
    directory.mkdir()
    return directory


@pytest.fixture
def root(tree: Path) -> Iterator[int]:
    fd = os.open(tree, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def file(tree: Path) -> Iterator[int]:
    fd = os.open(tree / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"abcdefgh" * 1024)
    yield fd
    os.close(fd)


def make(kind: str, path: Path) -> None:
    if kind == "file":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("nowhere")
    else:
        os.mkfifo(path)


def path_only(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_NOFOLLOW)


def test_openat2_stays_beneath(tree: Path, root: int) -> None:
    (tree / "directory").mkdir()
    (tree / "out").symlink_to("/etc")
    strict = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
    fd = syscalls.openat2(root, b"directory/new", os.O_CREAT | os.O_WRONLY, 0o640, strict)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
    assert not os.get_inheritable(fd)
    os.close(fd)
    for path, number in ((b"../up", errno.EXDEV), (b"/etc", errno.EXDEV), (b"out/passwd", errno.ELOOP)):
        with pytest.raises(OSError) as caught:
            syscalls.openat2(root, path, os.O_PATH, resolve=strict)
        assert caught.value.errno == number
        assert caught.value.filename == os.fsdecode(path)


def test_statx_agrees_with_stat(tree: Path, root: int, file: int) -> None:
    before = time.time_ns() - 10**9
    (tree / "new").write_bytes(b"12345")
    mask = syscalls.STATX_BASIC_STATS | syscalls.STATX_BTIME | syscalls.STATX_MNT_ID
    found = syscalls.statx(root, b"new", mask=mask)
    expected = (tree / "new").stat()
    assert (found.ino, found.mode, found.nlink, found.size) == (
        expected.st_ino,
        expected.st_mode,
        expected.st_nlink,
        5,
    )
    assert found.mask & mask == mask
    assert before < found.btime_ns <= time.time_ns()
    assert found.mount_id == syscalls.name_to_handle_at(root, b"new")[2]
    assert syscalls.statx(file, b"", syscalls.AT_EMPTY_PATH).size == 8192
    with pytest.raises(FileNotFoundError, match="missing"):
        syscalls.statx(root, b"missing")


def test_renameat2(tree: Path, root: int) -> None:
    (tree / "one").write_text("1")
    (tree / "two").write_text("2")
    with pytest.raises(FileExistsError, match="two"):
        syscalls.renameat2(root, b"one", root, b"two", syscalls.RENAME_NOREPLACE)
    syscalls.renameat2(root, b"one", root, b"two", syscalls.RENAME_EXCHANGE)
    assert ((tree / "one").read_text(), (tree / "two").read_text()) == ("2", "1")
    syscalls.renameat2(root, b"one", root, b"two")
    assert [path.name for path in tree.iterdir()] == ["two"]
    with pytest.raises(FileNotFoundError, match="one"):
        syscalls.renameat2(root, b"one", root, b"two")


def test_linking_a_descriptor(tree: Path, root: int) -> None:
    (tree / "link").symlink_to("nowhere")
    fd = path_only(tree / "link")
    syscalls.link_fd(fd, root, b"same")
    assert (tree / "same").readlink() == Path("nowhere")
    with pytest.raises(FileExistsError, match="same"):
        syscalls.link_fd(fd, root, b"same")
    os.close(fd)


def test_fallocate(tree: Path, file: int) -> None:
    syscalls.fallocate(file, syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE, 0, 4096)
    assert (tree / "file").read_bytes() == b"\0" * 4096 + b"abcdefgh" * 512
    assert os.lseek(file, 0, os.SEEK_DATA) == 4096
    syscalls.fallocate(file, syscalls.FALLOC_FL_COLLAPSE_RANGE, 0, 4096)
    assert (tree / "file").read_bytes() == b"abcdefgh" * 512
    syscalls.fallocate(file, syscalls.FALLOC_FL_INSERT_RANGE, 0, 4096)
    syscalls.fallocate(file, syscalls.FALLOC_FL_ZERO_RANGE, 4096, 4096)
    assert (tree / "file").read_bytes() == b"\0" * 8192
    syscalls.fallocate(file, syscalls.FALLOC_FL_KEEP_SIZE, 5 * 2**30, 4096)
    assert os.fstat(file).st_size == 8192
    with pytest.raises(OSError) as caught:
        syscalls.fallocate(file, 0, -1, 1)
    assert caught.value.errno == errno.EINVAL


def test_sharing_blocks(tree: Path, file: int) -> None:
    with open(tree / "copy", "w+b") as copy:
        syscalls.ficlone(copy.fileno(), file)
        assert copy.read() == b"abcdefgh" * 1024
        syscalls.ficlonerange(copy.fileno(), 8192, file, 4096, 4096)
        assert os.fstat(copy.fileno()).st_size == 12288
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError, match="Invalid"):
            syscalls.ficlone(file, read_end)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_flushing(file: int, root: int) -> None:
    everything = (
        syscalls.SYNC_FILE_RANGE_WAIT_BEFORE | syscalls.SYNC_FILE_RANGE_WRITE | syscalls.SYNC_FILE_RANGE_WAIT_AFTER
    )
    syscalls.sync_file_range(file, 0, 0, everything)
    syscalls.syncfs(root)
    assert syscalls.membarrier(syscalls.MEMBARRIER_CMD_QUERY) & syscalls.MEMBARRIER_CMD_GLOBAL
    assert syscalls.membarrier() == 0
    for call in (lambda: syscalls.syncfs(-1), lambda: syscalls.sync_file_range(-1, 0, 0, everything)):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("kind", ["file", "directory", "link", "fifo"])
def test_times_by_path_only_descriptors(tree: Path, root: int, kind: str) -> None:
    path = tree / kind
    make(kind, path)
    fd = path_only(path)
    syscalls.utimens(fd, b"", 10**18 + 1, 10**18 + 999_999_999, syscalls.AT_EMPTY_PATH)
    syscalls.utimens(fd, b"", None, -1, syscalls.AT_EMPTY_PATH)  # a nanosecond before 1970
    os.close(fd)
    found = path.lstat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (10**18 + 1, -1)
    syscalls.utimens(root, os.fsencode(kind), None, 5, syscalls.AT_SYMLINK_NOFOLLOW)
    assert (path.lstat().st_atime_ns, path.lstat().st_mtime_ns) == (10**18 + 1, 5)


@pytest.mark.parametrize("kind", ["file", "directory", "link", "fifo"])
def test_attributes_by_path_only_descriptors(tree: Path, kind: str) -> None:
    path = tree / kind
    make(kind, path)
    fd = path_only(path)
    assert syscalls.get_xattrs(fd) == {}
    syscalls.set_xattr(fd, b"trusted.note", b"\0\xff")
    syscalls.set_xattr(fd, b"trusted.n\xfe", b"")
    assert syscalls.get_xattrs(fd) == {b"trusted.note": b"\0\xff", b"trusted.n\xfe": b""}
    syscalls.remove_xattr(fd, b"trusted.note")
    assert syscalls.get_xattrs(fd) == {b"trusted.n\xfe": b""}
    with pytest.raises(OSError) as caught:
        syscalls.remove_xattr(fd, b"trusted.note")
    assert caught.value.errno == errno.ENODATA
    os.close(fd)


def test_no_attributes_where_there_can_be_none() -> None:
    fd = os.open("/proc/self/status", os.O_PATH)
    assert syscalls.get_xattrs(fd) == {}
    os.close(fd)


def test_a_mount_that_cannot_be_made_leaves_nothing_open(tree: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as caught:
        syscalls.mount_detached(b"btrfs", os.fsencode(tree / "no-device"), {b"subvolid": b"5"})
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(OSError, match="no-such-type"):
        syscalls.mount_detached(b"no-such-type", b"x", {})
    assert len(os.listdir("/proc/self/fd")) == before


def test_readable_bytes_of_a_pipe() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"12345")
    assert syscalls.fionread(read_end) == 5
    os.close(read_end)
    os.close(write_end)

"""Identities and handles on real filesystems."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator import syscalls
from replicator.errors import EnvironmentFault
from replicator.model import FileId
from replicator.tree.handles import SourceRoot, Stale
from tests.native.volumes import SIZE, VOLUMES, volume
from tests.support.filesystems import filesystem, run, unmount

pytestmark = pytest.mark.native


@pytest.fixture(scope="module", params=VOLUMES)
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with volume(request.param, tmp_path_factory.mktemp("handles") / "volume") as point:
        yield point


@pytest.fixture
def tree(mounted: Path, request: pytest.FixtureRequest) -> Path:
    """A fresh directory on the mounted filesystem."""
    directory = mounted / f"{request.node.name[:40]}-{time.monotonic_ns()}"
    directory.mkdir()
    return directory


@pytest.fixture
def source(tree: Path) -> Iterator[SourceRoot]:
    with SourceRoot.open(tree) as opened:
        yield opened


def id_at(source: SourceRoot, name: bytes) -> FileId:
    found, same_mount = source.id_at(source.fd, name)
    assert same_mount
    return found


def test_the_root_is_described_as_the_kernel_sees_it(mounted: Path, source: SourceRoot, tree: Path) -> None:
    assert source.path == str(tree)
    assert source.id.ino == tree.stat().st_ino
    assert source.fstype == run("findmnt", "-n", "-o", "FSTYPE", mounted).strip()
    major, minor = map(int, run("findmnt", "-n", "-o", "MAJ:MIN", mounted).split(":"))
    assert source.kernel_dev == major << 20 | minor
    assert (source.id.root != 0) == (source.fstype == "btrfs")


def test_every_kind_of_inode_comes_back_as_itself(source: SourceRoot, tree: Path) -> None:
    (tree / "file").write_bytes(b"x")
    (tree / "directory").mkdir()
    (tree / "link").symlink_to("nowhere")
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as unix:
        with contextlib.chdir(tree):
            unix.bind("socket")
    ids = set()
    for name in os.listdir(tree):
        found = id_at(source, os.fsencode(name))
        assert found.ino == os.lstat(tree / name).st_ino
        fd = source.open_by_id(found)
        try:
            assert source.id_of(fd) == found
            assert stat.S_IFMT(os.fstat(fd).st_mode) == stat.S_IFMT(os.lstat(tree / name).st_mode)
        finally:
            os.close(fd)
        ids.add(found)
    assert len(ids) == 6


@pytest.mark.parametrize("name", [b"new\nline", b"\xff\xfe not utf-8", b"n" * 255, b"-rf", b" "])
def test_names_may_be_any_bytes(source: SourceRoot, tree: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tree), name)
    with open(path, "wb"):
        pass
    assert id_at(source, name).ino == os.stat(path).st_ino


def test_a_missing_name_is_told_with_its_name(source: SourceRoot) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        source.id_at(source.fd, b"missing")
    assert caught.value.filename == "missing"


def test_a_name_of_a_link_means_the_link(source: SourceRoot, tree: Path) -> None:
    (tree / "file").touch()
    (tree / "link").symlink_to("file")
    assert id_at(source, b"link") != id_at(source, b"file")


def test_a_deleted_inode_is_stale(source: SourceRoot, tree: Path) -> None:
    (tree / "file").touch()
    found = id_at(source, b"file")
    (tree / "file").unlink()
    with pytest.raises(Stale) as caught:
        source.open_by_id(found)
    assert caught.value.id == found


def test_reused_inode_numbers_are_other_inodes(source: SourceRoot, tree: Path) -> None:
    reused = 0
    for _ in range(200):
        (tree / "file").touch()
        before = id_at(source, b"file")
        (tree / "file").unlink()
        (tree / "file").touch()
        after = id_at(source, b"file")
        assert before != after
        if before.ino == after.ino:
            reused += 1
            with pytest.raises(Stale):
                source.open_by_id(before)
        (tree / "file").unlink()
    if source.fstype == "ext4":
        assert reused > 100


def test_an_unlinked_file_that_is_open_can_be_read(source: SourceRoot, tree: Path) -> None:
    with open(tree / "file", "wb") as held:
        held.write(b"still here")
        held.flush()
        found = id_at(source, b"file")
        (tree / "file").unlink()
        fd = source.open_to_read(found)
        assert os.read(fd, 100) == b"still here"
        assert os.fstat(fd).st_nlink == 0
        os.close(fd)
    with pytest.raises(Stale):
        source.open_to_read(found)


def test_an_unnamed_file_keeps_its_identity_when_it_is_named(source: SourceRoot, tree: Path) -> None:
    fd = os.open(tree, os.O_TMPFILE | os.O_RDWR)
    try:
        before = source.id_of(fd)
        os.close(source.open_by_id(before))
        syscalls.link_fd(fd, source_writable(tree), b"named")
    finally:
        os.close(fd)
    assert id_at(source, b"named") == before


def source_writable(tree: Path) -> int:
    """A descriptor to write below: the source's own view is read-only."""
    fd = os.open(tree, os.O_RDONLY)
    _opened.append(fd)
    return fd


_opened: list[int] = []


@pytest.fixture(autouse=True)
def _close_opened() -> Iterator[None]:
    yield
    while _opened:
        os.close(_opened.pop())


def test_hard_links_are_one_inode(source: SourceRoot, tree: Path) -> None:
    (tree / "one").touch()
    os.link(tree / "one", tree / "two")
    assert id_at(source, b"one") == id_at(source, b"two")


def test_a_rename_keeps_the_identity(source: SourceRoot, tree: Path) -> None:
    (tree / "directory").mkdir()
    (tree / "file").touch()
    before = id_at(source, b"file")
    os.rename(tree / "file", tree / "directory" / "moved")
    directory = os.open("directory", os.O_RDONLY, dir_fd=source.fd)
    assert source.id_at(directory, b"moved") == (before, True)
    os.close(directory)


def test_fifos_and_devices_are_never_opened(source: SourceRoot, tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    fd = source.open_to_read(id_at(source, b"fifo"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(fd, 1)
    # A reader would let a writer open at once; there is none.
    with pytest.raises(OSError, match="No such device"):
        os.open(tree / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    os.close(fd)


def test_directories_can_be_listed(source: SourceRoot, tree: Path) -> None:
    (tree / "directory" / "inside").mkdir(parents=True)
    fd = source.open_to_read(id_at(source, b"directory"))
    assert os.listdir(fd) == ["inside"]
    os.close(fd)


def test_reading_does_not_change_access_times(source: SourceRoot, tree: Path) -> None:
    (tree / "file").write_bytes(b"x")
    os.utime(tree / "file", ns=(1, 2 * 10**18))
    fd = source.open_to_read(id_at(source, b"file"))
    os.read(fd, 1)
    os.close(fd)
    assert (tree / "file").stat().st_atime_ns == 1


def test_the_source_cannot_be_written_through_it(source: SourceRoot, tree: Path) -> None:
    (tree / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="Read-only"):
        source.open_by_id(id_at(source, b"file"), os.O_WRONLY)
    with pytest.raises(OSError, match="Read-only"):
        os.mkdir("new", dir_fd=source.fd)


@pytest.mark.parametrize("propagation", ["--make-private", "--make-shared"])
def test_mounts_inside_are_not_seen(mounted: Path, tree: Path, propagation: str) -> None:
    (tree / "point" / "covered").mkdir(parents=True)
    run("mount", propagation, mounted)
    with SourceRoot.open(tree) as source:
        before = id_at(source, b"point")
        run("mount", "-t", "tmpfs", "inner", tree / "point")
        try:
            (tree / "point" / "foreign").touch()
            assert id_at(source, b"point") == before
            fd = os.open("point", os.O_RDONLY, dir_fd=source.fd)
            assert os.listdir(fd) == ["covered"]
            os.close(fd)
            with SourceRoot.open(tree) as later:
                assert id_at(later, b"point") == before
        finally:
            run("umount", tree / "point")


def test_another_mount_of_the_same_files_is_told_apart(source: SourceRoot, tree: Path) -> None:
    (tree / "file").touch()
    outside = os.open(tree, os.O_RDONLY)
    try:
        assert source.id_at(outside, b"file") == (id_at(source, b"file"), False)
    finally:
        os.close(outside)


def test_impossible_ids_are_stale(source: SourceRoot) -> None:
    for bad in (
        FileId(0, source.id.root, 2**40 + 5, 7),
        FileId(0, source.id.root, 2**70, 7),
        FileId(0, source.id.root, 12, 2**33),
        source.id._replace(gen=source.id.gen + 1),
        FileId(0, 2**64, 300, 7),
    ):
        with pytest.raises(Stale):
            source.open_by_id(bad)


def test_generation_zero_is_not_a_wildcard(source: SourceRoot, tree: Path) -> None:
    (tree / "file").touch()
    found = id_at(source, b"file")
    assert found.gen != 0
    with pytest.raises(Stale):
        source.open_by_id(found._replace(gen=0))


def test_handles_of_another_form_are_refused(source: SourceRoot) -> None:
    for kind, handle in ((0xFF, b""), (0x01, b"abc"), (0x4D, b"\0" * 40), (0x81, b"")):
        with pytest.raises(ValueError, match="not a handle"):
            source.id_of_handle(kind, handle)


def test_a_replaced_or_renamed_root_is_gone(source: SourceRoot, tree: Path) -> None:
    assert source.still_there()
    moved = tree.with_name(tree.name + "-moved")
    tree.rename(moved)
    assert not source.still_there()
    tree.mkdir()
    assert not source.still_there()
    tree.rmdir()
    moved.rename(tree)
    assert source.still_there()


def test_a_root_that_is_mounted_over_is_gone(source: SourceRoot, tree: Path) -> None:
    run("mount", "-t", "tmpfs", "over", tree)
    try:
        assert not source.still_there()
    finally:
        run("umount", tree)
    assert source.still_there()


def test_it_is_fast_enough_for_a_scan(source: SourceRoot, tree: Path) -> None:
    (tree / "file").touch()
    found = id_at(source, b"file")
    rounds = 2000

    def cost(work: object) -> float:
        assert callable(work)
        best = float("inf")
        for _ in range(5):
            begin = time.thread_time()
            for _ in range(rounds):
                work()
            best = min(best, (time.thread_time() - begin) / rounds)
        return best

    assert cost(lambda: source.id_at(source.fd, b"file")) < 50e-6
    assert cost(lambda: os.close(source.open_by_id(found))) < 50e-6
    assert cost(lambda: os.close(source.open_to_read(found))) < 50e-6


@pytest.mark.parametrize("name", VOLUMES)
def test_an_unmounted_root_is_gone_and_back_again(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "volume"
    with volume(name, directory) as point:
        device = run("findmnt", "-n", "-o", "SOURCE", point).split("[")[0].strip()
        with SourceRoot.open(point) as source:
            assert source.still_there()
            unmount(point)
            assert not source.still_there()
            if source.fstype == "tmpfs":
                run("mount", "-t", "tmpfs", "another", point)
                assert not source.still_there()
            else:
                run("mount", "-o", "subvol=data" if "subvolume" in name else "rw", device, point)
                assert source.still_there()


def test_subvolumes_repeat_numbers_but_not_ids(tmp_path: Path) -> None:
    with filesystem("btrfs", tmp_path, size=SIZE) as point:
        for name in ("one", "two"):
            run("btrfs", "subvolume", "create", point / name)
            (point / name / "file").write_text(name)
        run("btrfs", "subvolume", "snapshot", point / "one", point / "copy")
        with SourceRoot.open(point) as source:
            ids = {}
            for name in ("one", "two", "copy"):
                fd = os.open(name, os.O_RDONLY, dir_fd=source.fd)
                ids[name], same_mount = source.id_at(fd, b"file")
                os.close(fd)
                assert same_mount
            assert ids["one"].ino == ids["two"].ino == ids["copy"].ino
            assert len(set(ids.values())) == 3
            for name, text in (("one", b"one"), ("two", b"two"), ("copy", b"one")):
                fd = source.open_to_read(ids[name])
                assert os.read(fd, 10) == text
                os.close(fd)


def test_the_empty_places_in_a_snapshot_have_no_identity(tmp_path: Path) -> None:
    with volume("btrfs", tmp_path / "volume") as point:
        run("btrfs", "subvolume", "create", point / "data")
        for name in ("one", "two"):
            run("btrfs", "subvolume", "create", point / "data" / name)
        (point / "data" / "file").touch()
        run("btrfs", "subvolume", "snapshot", point / "data", point / "copy")
        with SourceRoot.open(point / "copy") as source:
            assert id_at(source, b"file").root == source.id.root
            for empty in (b"one", b"two"):
                with pytest.raises(FileNotFoundError):
                    source.id_at(source.fd, empty)


def test_up_from_outside_of_the_tree_leads_nowhere(source: SourceRoot, tree: Path) -> None:
    (tree / "inside").mkdir()
    outside = tree.with_name(tree.name + "-outside")
    outside.mkdir()
    fd = os.open(outside, os.O_PATH)
    beside = source.id_of(fd)
    os.close(fd)
    fd = source.open_to_read(beside)
    with pytest.raises(FileNotFoundError):
        os.open("..", os.O_PATH, dir_fd=fd)
    os.close(fd)
    fd = source.open_to_read(id_at(source, b"inside"))
    assert source.id_at(fd, b"..") == (source.id, True)
    os.close(fd)


def test_without_root_it_says_so() -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        with filesystem("tmpfs", Path(name) / "volume", options=("mode=755",)) as point:
            os.seteuid(65534)
            try:
                with pytest.raises(EnvironmentFault, match="run as root") as caught:
                    SourceRoot.open(point)
            finally:
                os.seteuid(0)
            assert str(point) in str(caught.value)


def test_without_handles_it_says_so(source: SourceRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(syscalls, "open_by_handle_at", refuse)
    with pytest.raises(EnvironmentFault, match=r"CAP_DAC_READ_SEARCH; run as root"):
        SourceRoot.open(source.path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_xfs_inode_numbers_beyond_32_bits(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 * 2**40)
    run("mkfs.xfs", "-q", "-f", image)
    point = tmp_path / "mount"
    point.mkdir()
    run("mount", "-o", "loop,inode64", image, point)
    try:
        with SourceRoot.open(point) as source:
            found = []
            for number in range(64):  # each new directory goes to another allocation group
                (point / str(number)).mkdir()
                found.append(id_at(source, str(number).encode()))
            assert max(one.ino for one in found) > 2**32
            for one in found:
                fd = source.open_by_id(one)
                assert source.id_of(fd) == one
                os.close(fd)
    finally:
        run("umount", point)


@pytest.mark.parametrize("options", [(), ("inode64",), ("inode32",)])
def test_tmpfs_with_either_size_of_inode_numbers(tmp_path: Path, options: tuple[str, ...]) -> None:
    with filesystem("tmpfs", tmp_path, options=options) as point, SourceRoot.open(point) as source:
        (point / "file").touch()
        fd = source.open_by_id(id_at(source, b"file"))
        assert os.fstat(fd).st_ino == (point / "file").stat().st_ino
        os.close(fd)


def test_what_cannot_be_a_source_says_why_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, cause, cure in (
        (tmp_path / "missing", "does not exist", "check the path"),
        (tmp_path / "file", "not a directory", "name the directory"),
        (Path("/proc/self"), "proc", "ext4, XFS, btrfs or tmpfs"),
        (Path("/sys"), "sysfs", "ext4, XFS, btrfs or tmpfs"),
    ):
        with pytest.raises(EnvironmentFault) as caught:
            SourceRoot.open(path)
        message = str(caught.value)
        assert str(path) in message
        assert cause in message
        assert cure in message
        assert "\n" not in message

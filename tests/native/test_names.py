"""Looks from fanotify on real filesystems."""

from __future__ import annotations

import os
import select
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator import syscalls
from replicator.capture.names import InodeLook, Look, Names, Overflow, SlotLook
from replicator.capture.scratch import LARGEST_EVENT
from replicator.errors import EnvironmentFault
from replicator.model import FileId, Slot
from replicator.tree.handles import SourceRoot
from tests.native.volumes import VOLUMES, volume
from tests.support import syscalls as writers
from tests.support.filesystems import run, unmount

pytestmark = pytest.mark.native


@pytest.fixture(scope="module", params=VOLUMES)
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with volume(request.param, tmp_path_factory.mktemp("names") / "volume") as point:
        yield point


@pytest.fixture
def tree(mounted: Path) -> Path:
    """A fresh directory on the mounted filesystem."""
    directory = mounted / f"tree-{time.monotonic_ns()}"
    directory.mkdir()
    return directory


@pytest.fixture
def source(tree: Path) -> Iterator[SourceRoot]:
    with SourceRoot.open(tree) as opened:
        yield opened


@pytest.fixture
def names(source: SourceRoot) -> Iterator[Names]:
    with Names(source) as listening:
        yield listening


def id_of(source: SourceRoot, path: Path) -> FileId:
    """The identity of what is at a path now, links not followed."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return source.id_of(fd)
    finally:
        os.close(fd)


def drained(names: Names) -> list[Look]:
    looks = names.drain_queued()
    names.advance()
    assert names.drain_queued() == []
    assert names.queued() == 0
    return looks


def assert_slot(looks: list[Look], parent: FileId, name: bytes | str, target: FileId) -> None:
    """A change of this name, of this inode's names and of the directory's times is told."""
    assert SlotLook(Slot(parent, os.fsencode(name)), target) in looks
    assert InodeLook(target) in looks
    assert InodeLook(parent) in looks


def test_nothing_happened_nothing_is_told(names: Names) -> None:
    assert names.queued() == 0
    assert names.drain_queued() == []
    assert not names.behind


def test_making_each_kind_of_inode(source: SourceRoot, names: Names, tree: Path) -> None:
    (tree / "file").touch()
    (tree / "directory").mkdir()
    (tree / "link").symlink_to("nowhere")
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(tree / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    looks = drained(names)
    for path in tree.iterdir():
        assert_slot(looks, source.id, path.name, id_of(source, path))
    assert Overflow() not in looks


def test_removing_a_file_and_a_directory(source: SourceRoot, names: Names, tree: Path) -> None:
    (tree / "file").touch()
    (tree / "directory").mkdir()
    file, directory = id_of(source, tree / "file"), id_of(source, tree / "directory")
    drained(names)
    (tree / "file").unlink()
    (tree / "directory").rmdir()
    looks = drained(names)
    assert_slot(looks, source.id, "file", file)
    assert_slot(looks, source.id, "directory", directory)


def test_made_and_removed_at_once_still_says_where_to_look(source: SourceRoot, names: Names, tree: Path) -> None:
    for _ in range(100):
        (tree / "file").touch()
        (tree / "file").unlink()
    looks = drained(names)
    assert any(isinstance(look, SlotLook) and look.slot == Slot(source.id, b"file") for look in looks)
    assert InodeLook(source.id) in looks


def test_rename_within_and_across_directories(source: SourceRoot, names: Names, tree: Path) -> None:
    for name in ("one", "two"):
        (tree / name).mkdir()
    (tree / "one" / "file").touch()
    one, two = id_of(source, tree / "one"), id_of(source, tree / "two")
    file = id_of(source, tree / "one" / "file")
    drained(names)
    os.rename(tree / "one" / "file", tree / "one" / "renamed")
    looks = drained(names)
    assert_slot(looks, one, "file", file)
    assert_slot(looks, one, "renamed", file)
    os.rename(tree / "one" / "renamed", tree / "two" / "moved")
    looks = drained(names)
    assert_slot(looks, one, "renamed", file)
    assert_slot(looks, two, "moved", file)


def test_renaming_a_directory_into_its_sibling(source: SourceRoot, names: Names, tree: Path) -> None:
    for name in ("one", "two"):
        (tree / name).mkdir()
    one, two = id_of(source, tree / "one"), id_of(source, tree / "two")
    drained(names)
    os.rename(tree / "one", tree / "two" / "one")
    looks = drained(names)
    assert_slot(looks, source.id, "one", one)
    assert_slot(looks, two, "one", one)


@pytest.mark.parametrize("kind", ["file", "file with another link", "directory"])
def test_rename_over_tells_both_the_mover_and_the_displaced(
    source: SourceRoot, names: Names, tree: Path, kind: str
) -> None:
    for name in ("from", "to"):
        if kind == "directory":
            (tree / name).mkdir()
        else:
            (tree / name).touch()
    if kind.endswith("link"):
        os.link(tree / "to", tree / "other")
    mover, displaced = id_of(source, tree / "from"), id_of(source, tree / "to")
    drained(names)
    os.rename(tree / "from", tree / "to")
    looks = drained(names)
    assert_slot(looks, source.id, "from", mover)
    assert_slot(looks, source.id, "to", mover)
    assert InodeLook(displaced) in looks


def test_exchange_across_depths(source: SourceRoot, names: Names, tree: Path) -> None:
    (tree / "one").mkdir()
    (tree / "deep" / "er").mkdir(parents=True)
    one, deep, deeper = (id_of(source, tree / name) for name in ("one", "deep", "deep/er"))
    drained(names)
    writers.renameat2(tree / "one", tree / "deep" / "er", writers.RENAME_EXCHANGE)
    looks = drained(names)
    for parent, name in ((source.id, "one"), (deep, "er")):
        assert_slot(looks, parent, name, one)
        assert_slot(looks, parent, name, deeper)


def test_a_deep_tree_filled_at_once(source: SourceRoot, names: Names, tree: Path) -> None:
    deepest = tree.joinpath(*"abcdefgh")
    deepest.mkdir(parents=True)
    for number in range(50):
        (deepest / str(number)).touch()
    looks = drained(names)
    parent, path = source.id, tree
    for name in "abcdefgh":
        path = path / name
        here = id_of(source, path)
        assert_slot(looks, parent, name, here)
        parent = here
    for number in range(50):
        assert_slot(looks, parent, str(number), id_of(source, deepest / str(number)))


def test_hard_links_made_and_removed(source: SourceRoot, names: Names, tree: Path) -> None:
    (tree / "file").touch()
    file = id_of(source, tree / "file")
    drained(names)
    os.link(tree / "file", tree / "link")
    assert_slot(drained(names), source.id, "link", file)
    (tree / "file").unlink()
    assert_slot(drained(names), source.id, "file", file)


def test_an_unnamed_file_is_told_when_it_is_named(source: SourceRoot, names: Names, tree: Path) -> None:
    fd = os.open(tree, os.O_TMPFILE | os.O_RDWR)
    writers.link_descriptor(fd, tree / "named")
    os.close(fd)
    assert_slot(drained(names), source.id, "named", id_of(source, tree / "named"))


def test_attributes_of_files_directories_and_links(source: SourceRoot, names: Names, tree: Path) -> None:
    (tree / "file").touch()
    (tree / "directory").mkdir()
    (tree / "link").symlink_to("file")
    file, directory, link = (id_of(source, tree / name) for name in ("file", "directory", "link"))
    drained(names)
    (tree / "file").chmod(0o4755)
    assert drained(names) == [InodeLook(file)]
    os.chown(tree / "directory", 1, 1)
    assert drained(names) == [InodeLook(directory)]
    os.lchown(tree / "link", 1, 1)
    assert drained(names) == [InodeLook(link)]
    os.setxattr(tree / "file", "trusted.note", b"x")
    assert drained(names) == [InodeLook(file)]
    os.removexattr(tree / "file", "trusted.note")
    assert drained(names) == [InodeLook(file)]
    tree.chmod(0o700)
    assert drained(names) == [InodeLook(source.id)]


def test_attributes_changed_through_a_descriptor_of_a_nameless_file(
    source: SourceRoot, names: Names, tree: Path
) -> None:
    with open(tree / "file", "wb") as held:
        file = source.id_of(held.fileno())
        (tree / "file").unlink()
        drained(names)
        os.fchmod(held.fileno(), 0o600)
        assert InodeLook(file) in drained(names)


@pytest.mark.parametrize("name", [b"new\nline", b"\xff\xfe not utf-8", b"n" * 255, b" ", b"..."])
def test_names_may_be_any_bytes(source: SourceRoot, names: Names, tree: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tree), name)
    with open(path, "wb"):
        pass
    file = id_of(source, Path(os.fsdecode(path)))
    assert_slot(drained(names), source.id, name, file)
    other = name[:-1] + b"x"
    os.rename(path, os.path.join(os.fsencode(tree), other))
    looks = drained(names)
    assert_slot(looks, source.id, name, file)
    assert_slot(looks, source.id, other, file)


def test_what_happens_beside_the_tree_is_told_too(source: SourceRoot, names: Names, tree: Path) -> None:
    outside = tree.with_name(tree.name + "-outside")
    outside.mkdir()
    (outside / "file").touch()
    assert_slot(drained(names), id_of(source, outside), "file", id_of(source, outside / "file"))


def test_what_other_mounts_of_the_filesystem_do_is_told(
    source: SourceRoot, names: Names, tree: Path, tmp_path: Path
) -> None:
    bound = tmp_path / "bound"
    bound.mkdir()
    run("mount", "--bind", tree, bound)
    try:
        (bound / "file").touch()
    finally:
        unmount(bound)
    assert_slot(drained(names), source.id, "file", id_of(source, tree / "file"))


def test_a_new_inode_can_be_opened_by_the_id_that_is_told(source: SourceRoot, names: Names, tree: Path) -> None:
    (tree / "file").write_bytes(b"content")
    for look in drained(names):
        if isinstance(look, SlotLook):
            assert look.target is not None
            fd = source.open_to_read(look.target)
            assert os.read(fd, 10) == b"content"
            os.close(fd)


def test_queued_counts_events_and_drains_may_be_small(source: SourceRoot, tree: Path) -> None:
    with Names(source, scratch_bytes=3 * LARGEST_EVENT) as names:
        for number in range(500):
            (tree / f"{number}{'n' * 200}").touch()
        assert names.queued() == 500
        looks = names.drain_queued()
        drains = 1
        while names.behind:
            names.advance()
            looks += names.drain_queued()
            drains += 1
        assert drains > 10
        assert names.queued() == 0
        assert len([look for look in looks if isinstance(look, SlotLook)]) == 500


def test_a_drain_ends_although_a_writer_never_pauses(source: SourceRoot, tree: Path) -> None:
    with Names(source, scratch_bytes=3 * LARGEST_EVENT) as names:
        for number in range(2000):
            (tree / str(number)).touch()
        told: set[bytes] = set()
        seen = 0
        while not seen or names.behind:  # each time that is drained, as many events arrive as were taken
            slots = [look.slot.name for look in names.drain_queued() if isinstance(look, SlotLook)]
            names.advance()
            for _ in slots:
                (tree / f"more{seen}").touch()
                seen += 1
            told.update(slots)
        assert {str(number).encode() for number in range(2000)} <= told
        assert names.queued() >= 1900


def test_an_overflow_is_told(names: Names, tree: Path) -> None:
    limit = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    os.mkdir(tree / "d")
    for number in range(limit + 10):
        fd = os.open(tree / "d" / str(number), os.O_CREAT | os.O_WRONLY)
        os.close(fd)
    looks = names.drain_queued()
    while names.behind:
        names.advance()
        looks += names.drain_queued()
    names.advance()
    assert looks.count(Overflow()) == 1
    (tree / "afterwards").touch()
    looks = drained(names)
    assert Overflow() not in looks
    assert len([look for look in looks if isinstance(look, SlotLook)]) == 1


def test_modifications_are_told_on_request_only(source: SourceRoot, tree: Path) -> None:
    file = tree / "file"
    file.write_bytes(b"content")
    changes = {
        "mtime": lambda: run("touch", "-m", "-d", "@1", file),
        "size": lambda: os.truncate(file, 3),
        "bytes": lambda: file.open("r+b", buffering=0).write(b"x"),
    }
    with Names(source) as silent, Names(source, modify=True) as names:
        for change in changes.values():
            change()
            assert drained(names) == [InodeLook(id_of(source, file))]
        assert drained(silent) == []


def test_it_is_readable_only_while_events_wait(names: Names, tree: Path) -> None:
    poll = select.poll()
    poll.register(names.fileno(), select.POLLIN)
    assert poll.poll(0) == []
    (tree / "file").touch()
    assert poll.poll(0) != []
    drained(names)
    assert poll.poll(0) == []


def test_subvolumes_below_and_beside_are_heard(tmp_path: Path) -> None:
    with volume("btrfs subvolume", tmp_path / "volume") as point:
        run("btrfs", "subvolume", "create", point / "nested")
        with SourceRoot.open(point) as source, Names(source) as names:
            (point / "nested" / "file").touch()
            assert_slot(drained(names), id_of(source, point / "nested"), "file", id_of(source, point / "nested/file"))
            run("btrfs", "subvolume", "create", point / "later")
            looks = drained(names)
            assert_slot(looks, source.id, "later", id_of(source, point / "later"))
            (point / "later" / "file").touch()
            assert_slot(drained(names), id_of(source, point / "later"), "file", id_of(source, point / "later/file"))
            run("btrfs", "subvolume", "snapshot", point / "nested", point / "copy")
            assert_slot(drained(names), source.id, "copy", id_of(source, point / "copy"))


def test_a_read_only_btrfs_stays_read_only(tmp_path: Path) -> None:
    with volume("btrfs subvolume", tmp_path / "volume") as point:
        unmount(point)
        run("mount", "-o", "loop,ro,subvol=data", tmp_path / "volume" / "image", point)
        with SourceRoot.open(point) as source, Names(source):
            assert "ro" in run("findmnt", "-n", "-o", "FS-OPTIONS", point).split(",")


def test_no_mount_is_left_in_sight(mounted: Path, source: SourceRoot) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with Names(source):
        assert Path("/proc/self/mountinfo").read_text() == before


def test_a_refusal_says_why_and_what_to_do(source: SourceRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(syscalls, "fanotify_mark", refuse)
    with pytest.raises(EnvironmentFault, match="run as root"):
        Names(source)
    assert len(os.listdir("/proc/self/fd")) == before


def test_parsing_keeps_up(source: SourceRoot, names: Names, tree: Path) -> None:
    for number in range(5000):
        (tree / str(number)).touch()
    begin = time.thread_time()
    looks = drained(names)
    rate = 5000 / (time.thread_time() - begin)
    assert len(looks) == 10001
    assert rate > 30_000

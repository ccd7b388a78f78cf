"""The power of the replica's machine goes after an epoch that is not durable: what was durable must still be there.

The journal of the filesystem is committed by an fsync of a stranger, so that names and sizes are on the disk; the bytes
of files are not, unless somebody asked for that.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator import syscalls
from replicator.mirror.mirror import Mirror
from replicator.mirror.recover import Recovery
from replicator.model import Extent, FileId, Kind, Slot
from tests.native.mirror_world import ROOT, World, make_durable
from tests.support.outlet import Outlet

pytestmark = pytest.mark.native

START_SYNC, WAIT_SYNC = 0x80089418, 0x40089416

OLD, NEW = b"old" * 50_000, b"new" * 70_000


class Replica:
    """A mirror on a disk whose power can be cut, and the source in memory that it is of."""

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet
        self.root = outlet.point / "root"
        self.root.mkdir()
        (outlet.point / "stranger").touch()
        self.world = World()
        self.mirror = Mirror.open(self.root, outlet.point / "state", False)
        self.mirror.begin("source", ROOT, 1)
        self.file = self.world.make(ROOT, b"file", content=OLD)
        self.world.tell_until_quiet(self.mirror, self.world.tell_all(self.mirror))
        make_durable(self.mirror)

    def commit_journal(self) -> None:
        fd = os.open(self.outlet.point / "stranger", os.O_WRONLY)
        try:
            os.write(fd, b"x" * 5000)
            os.fsync(fd)
            if self.outlet.fstype == "btrfs":  # that was a log of one file; a commit comes twice a minute
                number = bytearray(8)
                fcntl.ioctl(fd, START_SYNC, number)
                fcntl.ioctl(fd, WAIT_SYNC, number)
        finally:
            os.close(fd)

    def content_after_a_power_cut(self) -> bytes:
        self.power_cut()
        return (self.root / "file").read_bytes()

    def power_cut(self, *, committed: bool = True) -> None:
        """And the next boot, in which the receiver starts. `committed`: the filesystem's journal was, just before."""
        if committed:
            self.commit_journal()
        self.outlet.cut()
        self.mirror.abandon()
        self.outlet.off()
        self.outlet.boot()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("replicator.mirror.mirror.boot_id", lambda: f"boot {self.outlet.boots}")
            self.mirror = Mirror.open(self.root, self.outlet.point / "state", False)
        self.mirror.begin("source", ROOT, 1)


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def replica(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Replica]:
    with Outlet(request.param, scratch / "outlet", seed=0, size=512 << 20) as outlet:
        made = Replica(outlet)
        yield made
        made.mirror.abandon()


def test_a_file_renamed_over_has_its_old_bytes_or_its_new_ones(replica: Replica) -> None:
    world = replica.world
    new = world.make(ROOT, b"file", content=NEW)
    world.tell(replica.mirror, {Slot(ROOT, b"file"): new}, [world.fact(new)], [replica.file])
    assert replica.content_after_a_power_cut() in (OLD, NEW)


def test_a_file_that_was_known_under_another_name_and_is_renamed_over(replica: Replica) -> None:
    world = replica.world
    new = world.make(ROOT, b"temporary", content=NEW)
    world.tell(replica.mirror, {Slot(ROOT, b"temporary"): new}, [world.fact(new)])
    names: dict[Slot, FileId | None] = {Slot(ROOT, b"temporary"): None, Slot(ROOT, b"file"): new}
    world.tell(replica.mirror, names, [], [replica.file])
    assert replica.content_after_a_power_cut() in (OLD, NEW)


def test_two_files_that_are_exchanged(replica: Replica) -> None:
    world = replica.world
    new = world.make(ROOT, b"other", content=NEW)
    world.tell(replica.mirror, {Slot(ROOT, b"other"): new}, [world.fact(new)])
    world.tell(replica.mirror, {Slot(ROOT, b"other"): replica.file, Slot(ROOT, b"file"): new})
    assert replica.content_after_a_power_cut() in (OLD, NEW)


@pytest.mark.parametrize("content", [OLD, NEW, OLD[:70_000]])
def test_a_file_that_is_sent_whole_again_is_not_short_meanwhile(replica: Replica, content: bytes) -> None:
    """Nor when the second part of it never comes."""
    world = replica.world
    world.inodes[replica.file].content = content
    first = world.fact(replica.file, partial=True, data=(Extent(0, 5000),))
    world.tell(replica.mirror, {}, [first])
    left = replica.content_after_a_power_cut()
    assert len(left) == len(OLD)
    assert left[5000:] == OLD[5000:]


def test_a_file_that_gets_an_inode_of_its_own_because_a_stranger_linked_it(replica: Replica) -> None:
    world = replica.world
    os.link(replica.root / "file", replica.outlet.point / "yesterday")
    world.inodes[replica.file].content = NEW[:10] + OLD[10:]
    world.tell(replica.mirror, {}, [world.fact(replica.file, whole=False, lowest=None)])
    assert replica.content_after_a_power_cut() in (OLD, NEW[:10] + OLD[10:])


def test_a_death_does_not_come_before_what_took_the_place(replica: Replica) -> None:
    world = replica.world
    assert world.inodes[replica.file].kind is Kind.FILE
    new = world.make(ROOT, b"file", content=NEW)
    world.tell(replica.mirror, {Slot(ROOT, b"file"): new}, [world.fact(new)])
    world.tell(replica.mirror, {}, [], [replica.file])
    assert replica.content_after_a_power_cut() in (OLD, NEW)


def assert_same(replica: Replica) -> None:
    make_durable(replica.mirror)
    assert replica.world.differences(str(replica.root)) == []


def test_a_name_that_was_made_before_the_cut_and_removed_after_it_goes(replica: Replica) -> None:
    world = replica.world
    brief, directory = world.make(ROOT, b"brief", content=NEW), world.make(ROOT, b"directory", Kind.DIRECTORY)
    inside = world.make(directory, b"inside")
    facts = [world.fact(id) for id in (brief, directory, inside)]
    world.tell(replica.mirror, dict(world.names), facts)
    assert (replica.root / "directory/inside").exists()
    replica.power_cut()
    mirror = replica.mirror
    names: dict[Slot, FileId | None] = {}
    for slot in (Slot(ROOT, b"brief"), Slot(ROOT, b"directory")):
        names[slot] = None
        del world.names[slot]
    del world.names[Slot(directory, b"inside")]
    world.tell_until_quiet(mirror, world.tell(mirror, names, [world.fact(ROOT)], [brief, directory, inside]))
    assert_same(replica)


def test_what_lies_in_a_directory_that_waits_for_its_next_name_stays_known(replica: Replica) -> None:
    world = replica.world
    upper = world.make(ROOT, b"upper", Kind.DIRECTORY)
    lower = world.make(upper, b"lower", Kind.DIRECTORY)
    world.make(lower, b"deep", content=NEW)
    world.tell_until_quiet(replica.mirror, world.tell_all(replica.mirror))
    assert_same(replica)
    del world.names[Slot(ROOT, b"upper")]
    world.tell(replica.mirror, {Slot(ROOT, b"upper"): None})
    replica.power_cut()
    mirror = replica.mirror
    world.names[Slot(ROOT, b"moved")] = upper
    names: dict[Slot, FileId | None] = {Slot(ROOT, b"upper"): None, Slot(ROOT, b"moved"): upper}
    answer = world.tell(mirror, names, [world.fact(ROOT)])
    assert (answer.needs, answer.looks) == ((), ())
    assert_same(replica)
    del world.names[Slot(upper, b"lower")]
    world.names[Slot(upper, b"renamed")] = lower
    names = {Slot(upper, b"lower"): None, Slot(upper, b"renamed"): lower}
    answer = world.tell(mirror, names, [world.fact(upper)])
    assert (answer.needs, answer.looks) == ((), ())
    assert_same(replica)


def test_what_was_moved_into_a_directory_that_is_not_known_yet_is_not_lost(replica: Replica) -> None:
    world = replica.world
    old = world.make(ROOT, b"old", Kind.DIRECTORY)
    world.make(old, b"deep", content=NEW)
    world.tell_until_quiet(replica.mirror, world.tell_all(replica.mirror))
    assert_same(replica)
    new = world.make(ROOT, b"new", Kind.DIRECTORY)
    names: dict[Slot, FileId | None] = {Slot(ROOT, b"new"): new}
    for name, id in ((b"file", replica.file), (b"old", old)):
        names |= {Slot(ROOT, name): None, Slot(new, name): id}
        del world.names[Slot(ROOT, name)]
        world.names[Slot(new, name)] = id
    world.tell(replica.mirror, names, [world.fact(new)])
    replica.power_cut()
    mirror = replica.mirror
    answer = world.tell(mirror, names, [world.fact(new), world.fact(ROOT)])
    assert (answer.needs, answer.looks) == ((), ())
    assert_same(replica)


def test_an_end_whose_sync_failed_is_not_taken_for_a_clean_one(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    walked: list[Recovery] = []
    with monkeypatch.context() as patch:
        patch.setattr(syscalls, "syncfs", refuse)
        replica.mirror.close()
    with monkeypatch.context() as patch:
        patch.setattr("replicator.mirror.mirror.boot_id", lambda: "another boot")
        patch.setattr(Recovery, "after_power_cut", lambda recovery: walked.append(recovery))
        replica.mirror = Mirror.open(replica.root, replica.outlet.point / "state", False)
    assert walked


def test_times_are_right_after_one_power_cut_and_after_another(replica: Replica) -> None:
    replica.power_cut(committed=False)
    assert replica.world.differences(str(replica.root)) == []
    replica.power_cut(committed=False)
    assert replica.world.differences(str(replica.root)) == []


def test_what_an_undone_epoch_left_under_a_name_gives_way_to_bytes_only(replica: Replica) -> None:
    world = replica.world
    new = world.make(ROOT, b"file", content=NEW)
    facts: dict[Slot, FileId | None] = {Slot(ROOT, b"file"): new}
    world.tell(replica.mirror, facts, [world.fact(new)], [replica.file])
    replica.power_cut()
    world.tell(replica.mirror, facts, [world.fact(new)], [replica.file])
    assert replica.content_after_a_power_cut() in (OLD, NEW)


def test_bytes_of_a_receiver_that_was_killed_are_on_the_disk_before_they_take_a_name(replica: Replica) -> None:
    world = replica.world
    new = world.make(ROOT, b"temporary", content=NEW)
    world.tell(replica.mirror, {Slot(ROOT, b"temporary"): new}, [world.fact(new)])
    make_durable(replica.mirror)
    world.inodes[new].content = OLD[:7] + NEW
    world.tell(replica.mirror, {}, [world.fact(new, whole=False, lowest=None)])
    replica.mirror.abandon()
    replica.mirror = Mirror.open(replica.root, replica.outlet.point / "state", False)
    replica.mirror.begin("source", ROOT, 1)
    names: dict[Slot, FileId | None] = {Slot(ROOT, b"temporary"): None, Slot(ROOT, b"file"): new}
    world.tell(replica.mirror, names, [], [replica.file])
    assert replica.content_after_a_power_cut() in (OLD, OLD[:7] + NEW)

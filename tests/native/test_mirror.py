"""A replica on a real filesystem: what a user would see of attributes, foreign changes, a full disk, and restarts."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from replicator import syscalls
from replicator.blocks import COMPARED_FROM
from replicator.errors import EnvironmentFault, RefusedError, RemoteError
from replicator.mirror.limbo import NAME as LIMBO_NAME
from replicator.mirror.mirror import Mirror
from replicator.model import Extent, FileId, Kind, Slot
from tests.native.mirror_world import ROOT, World, make_durable
from tests.support.filesystems import FILESYSTEMS, filesystem

CAPABILITY = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as the kernel stores it, from (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACL = acl((1, 6, NOBODY), (2, 4, 1000), (4, 4, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY))


@pytest.fixture(scope="module", params=FILESYSTEMS)
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with filesystem(request.param, tmp_path_factory.mktemp(request.param), 512 * 2**20) as mounted:
        yield mounted


class Pair:
    """A source in memory and an open mirror."""

    def __init__(self, root: Path, state: Path) -> None:
        self.root, self.state = root, state
        self.world = World()
        self.mirror = Mirror.open(root, state, False)
        self.mirror.begin("source", ROOT, 1)

    def reopen(self, instance: int = 1, crash: bool = True) -> None:
        (self.mirror.abandon if crash else self.mirror.close)()
        self.mirror = Mirror.open(self.root, self.state, False)
        self.mirror.begin("source", ROOT, instance)

    def sync(self) -> None:
        """Everything, durable, compared."""
        self.world.tell_until_quiet(self.mirror, self.world.tell_all(self.mirror))
        self.check()

    def check(self) -> None:
        make_durable(self.mirror)
        differences = self.world.differences(str(self.root))
        assert not differences, "\n".join(differences)


@pytest.fixture
def pair(volume: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    root = volume / "root"
    root.mkdir()
    made = Pair(root, tmp_path / "state")
    yield made
    made.mirror.abandon()
    shutil.rmtree(root)


def test_every_kind_with_every_attribute(pair: Pair) -> None:
    world = pair.world
    top = world.make(ROOT, b"dir", Kind.DIRECTORY, mode=0o2750, uid=5, gid=6, mtime_ns=123_456_789_012_345_678)
    default = b"system.posix_acl_default"
    world.make(top, b"acls", Kind.DIRECTORY, mode=0o750, xattrs={default: ACL, b"trusted.x": b""})
    world.make(
        top, b"file", content=b"x" * 5000, mode=0o4755, uid=3, gid=4, xattrs={b"security.capability": CAPABILITY}
    )
    world.make(top, b"acl", content=b"y", mode=0o640, xattrs={b"system.posix_acl_access": ACL, b"user.n": b"\0\xff"})
    world.make(top, b"empty")
    world.make(top, b"link", Kind.SYMLINK, target=b"no\xffwhere", uid=9, mtime_ns=-1_000_000_001)
    for kind in (Kind.FIFO, Kind.SOCKET):
        world.make(top, kind.encode(), kind, mode=0o600, gid=7)
    for kind in (Kind.CHARACTER, Kind.BLOCK):
        world.make(top, kind.encode(), kind, rdev=os.makedev(7, 200), mode=0o660)
    pair.sync()


def test_attributes_change_alone(pair: Pair) -> None:
    world = pair.world
    file = world.make(ROOT, b"f", content=b"data" * 2000, xattrs={b"user.old": b"1", b"user.kept": b"2"})
    pair.sync()
    before = os.stat(pair.root / "f")
    inode = world.inodes[file]
    for change in (
        {"mode": 0o4711},
        {"uid": 12},
        {"mtime_ns": 5},
        {"xattrs": {b"user.kept": b"3", b"security.capability": CAPABILITY}},
        {"xattrs": {b"system.posix_acl_access": ACL}, "mode": 0o640},
        {"xattrs": {}, "mode": 0o600},
    ):
        inode.attributes = replace(inode.attributes, **change)
        world.tell(pair.mirror, inodes=[world.fact(file, whole=False, lowest=None, data=())])
        # Without data there is nothing to wait for: times are right at once.
        assert not world.differences(str(pair.root))
    assert os.stat(pair.root / "f").st_ino == before.st_ino


def test_bytes_in_place_keep_capability_and_setuid(pair: Pair) -> None:
    world = pair.world
    file = world.make(ROOT, b"f", content=b"a" * 9000, mode=0o4755, xattrs={b"security.capability": CAPABILITY})
    pair.sync()
    world.inodes[file].content = b"a" * 4096 + b"b" * 4096 + b"a" * 808
    world.tell(pair.mirror, inodes=[world.fact(file, whole=False, lowest=None, data=(Extent(4096, 4096),))])
    pair.check()


def test_truncate_then_extend_leaves_zeros(pair: Pair) -> None:
    world = pair.world
    file = world.make(ROOT, b"f", content=b"a" * 10_000)
    pair.sync()
    world.inodes[file].content = b"a" * 100 + bytes(20_000)
    world.tell(pair.mirror, inodes=[world.fact(file, whole=False, lowest=100, data=())])
    pair.check()


def test_holes_are_punched_and_new_files_sparse(pair: Pair) -> None:
    world = pair.world
    size = 8 << 20
    file = world.make(ROOT, b"f", content=b"z" * size)
    pair.sync()
    world.inodes[file].content = b"z" * 65536 + bytes(size - 65536)
    world.tell(
        pair.mirror, inodes=[world.fact(file, whole=False, lowest=None, data=(), holes=(Extent(65536, size - 65536),))]
    )
    pair.check()
    assert os.stat(pair.root / "f").st_blocks * 512 <= 256 * 1024
    sparse = world.make(ROOT, b"s", content=bytes(size - 3) + b"end")
    fact = world.fact(sparse, data=(Extent(size - 3, 3),), holes=(Extent(0, size - 4096),))
    world.tell(pair.mirror, {Slot(ROOT, b"s"): sparse}, [fact])
    pair.check()
    assert os.stat(pair.root / "s").st_blocks * 512 <= 256 * 1024


def test_a_big_file_in_slices_is_not_seen_before_it_is_whole(pair: Pair) -> None:
    world = pair.world
    file = world.make(ROOT, b"big", content=os.urandom(100_000))
    world.tell(pair.mirror, inodes=[world.fact(ROOT), world.fact(file, partial=True, data=(Extent(0, 40_000),))])
    answer = world.tell(
        pair.mirror,
        {Slot(ROOT, b"big"): file},
        [world.fact(file, partial=True, lowest=None, data=(Extent(40_000, 40_000),))],
    )
    assert answer.looks == (Slot(ROOT, b"big"),)
    assert not (pair.root / "big").exists()
    world.tell(pair.mirror, {Slot(ROOT, b"big"): file}, [world.fact(file, lowest=None, data=(Extent(80_000, 20_000),))])
    pair.check()


def test_nothing_private_is_left_to_see(pair: Pair) -> None:
    world = pair.world
    for number in range(20):
        world.make(ROOT, b"%d" % number, content=b"x")
    pair.sync()
    assert sorted(os.listdir(pair.root)) == sorted(str(number) for number in range(20))


def test_the_reserved_name_belongs_to_the_user(pair: Pair) -> None:
    world = pair.world
    kept = world.make(ROOT, b"kept", content=b"in limbo for a while")
    pair.sync()
    del world.names[Slot(ROOT, b"kept")]
    world.tell(pair.mirror, {Slot(ROOT, b"kept"): None})
    assert (pair.root / ".rsyncfs-limbo").is_dir()
    own = world.make(ROOT, b".rsyncfs-limbo", content=b"the user's")
    world.tell(pair.mirror, {Slot(ROOT, b".rsyncfs-limbo"): own}, [world.fact(own)])
    assert (pair.root / ".rsyncfs-limbo").read_bytes() == b"the user's"
    pair.reopen()
    world.names[Slot(ROOT, b"kept")] = kept
    answer = world.tell(pair.mirror, {Slot(ROOT, b"kept"): kept, Slot(ROOT, b".rsyncfs-limbo"): own})
    assert not answer.needs
    pair.check()


def test_a_hard_linked_copy_of_the_replica_is_left_alone(pair: Pair) -> None:
    world = pair.world
    file = world.make(ROOT, b"f", content=b"old" * 1000)
    device = world.make(ROOT, b"p", Kind.FIFO)
    world.names[Slot(ROOT, b"g")] = file
    pair.sync()
    copy = pair.root.parent / "copy"
    subprocess.run(["cp", "-al", pair.root, copy], check=True)
    inode = world.inodes[file]
    inode.content = b"old" * 500 + b"new" * 500
    inode.attributes = replace(inode.attributes, mode=0o600, mtime_ns=99)
    world.inodes[device].attributes = replace(world.inodes[device].attributes, uid=3)
    data = (Extent(1500, 1500),)
    world.tell(pair.mirror, inodes=[world.fact(file, whole=False, lowest=None, data=data), world.fact(device)])
    pair.check()
    assert (copy / "f").read_bytes() == b"old" * 1000
    assert os.stat(copy / "f").st_mode & 0o777 == 0o644
    assert os.stat(copy / "p").st_uid == 0
    shutil.rmtree(copy)


def test_readers_never_miss_a_replaced_file(pair: Pair) -> None:
    world = pair.world
    file = world.make(ROOT, b"f", content=b"0" * 8192)
    pair.sync()
    trouble: list[str] = []
    stop = threading.Event()
    reads = 0

    def read() -> None:
        nonlocal reads
        while not stop.is_set():
            try:
                data = (pair.root / "f").read_bytes()
            except FileNotFoundError:
                trouble.append("missing")
                return
            if len(data) != 8192 or len(set(data)) != 1:
                trouble.append("mixed")
                return
            reads += 1

    reader = threading.Thread(target=read)
    reader.start()
    slot = Slot(ROOT, b"f")
    for number in range(300):
        new = world.make(ROOT, b"f", content=b"%d" % (number % 10) * 8192)
        old, file = file, new
        world.tell(pair.mirror, {slot: new}, [world.fact(new)], [old])
    while reads < 50 and not trouble:
        stop.wait(0.001)
    stop.set()
    reader.join()
    assert not trouble
    pair.world.inodes = {id: inode for id, inode in world.inodes.items() if id in (ROOT, file)}
    pair.check()


def test_what_others_did_to_the_replica_is_undone(pair: Pair) -> None:
    world = pair.world
    top = world.make(ROOT, b"dir", Kind.DIRECTORY)
    world.make(top, b"moved", content=b"1")
    world.make(top, b"gone", content=b"2")
    replaced = world.make(top, b"replaced", content=b"3")
    away = world.make(ROOT, b"away", Kind.DIRECTORY)
    world.make(away, b"inner", content=b"4")
    pair.sync()
    os.rename(pair.root / "dir/moved", pair.root / "elsewhere")
    os.unlink(pair.root / "dir/gone")
    os.unlink(pair.root / "dir/replaced")
    (pair.root / "dir/replaced").mkdir()
    (pair.root / "dir/replaced/file").write_text("foreign")
    os.rename(pair.root / "away", pair.root / "dir/elsewhere")
    (pair.root / "dir/new").write_text("foreign")
    answer = world.tell(pair.mirror, dict(world.names), [world.fact(replaced)])
    world.tell_until_quiet(pair.mirror, answer)
    for directory in (ROOT, top, away):
        for name in pair.mirror.inspection.extra_names(directory):
            pair.mirror.remove_extra(directory, name)
    pair.check()


def test_a_directory_replaced_by_another_is_asked_for_with_all_in_it(pair: Pair) -> None:
    world = pair.world
    top = world.make(ROOT, b"dir", Kind.DIRECTORY)
    world.make(top, b"old", content=b"1")
    pair.sync()
    pair.reopen()
    os.rename(pair.root / "dir", pair.root.parent / "aside")
    (pair.root / "dir").mkdir()
    new = world.make(top, b"new", content=b"2")
    answer = world.tell(pair.mirror, {Slot(top, b"new"): new}, [world.fact(new)])
    assert top in answer.needs
    world.tell_until_quiet(pair.mirror, answer)
    pair.check()
    shutil.rmtree(pair.root.parent / "aside")


def test_a_dead_directory_goes_with_what_others_put_there(pair: Pair) -> None:
    world = pair.world
    top = world.make(ROOT, b"dir", Kind.DIRECTORY)
    inner = world.make(top, b"f", content=b"1")
    kept = world.make(ROOT, b"kept", content=b"2")
    pair.sync()
    (pair.root / "dir/sub/sub").mkdir(parents=True)
    (pair.root / "dir/sub/foreign").write_text("x")
    os.link(pair.root / "kept", pair.root / "dir/sub/link")
    for id in (top, inner):
        del world.inodes[id]
    world.names = {Slot(ROOT, b"kept"): kept}
    answer = world.tell(pair.mirror, {Slot(ROOT, b"dir"): None}, dead=[top, inner])
    assert not answer.refusals
    pair.check()


def test_a_foreign_entry_makes_way_and_a_known_one_survives_it(pair: Pair) -> None:
    world = pair.world
    kept = world.make(ROOT, b"kept", content=b"precious")
    pair.sync()
    inode = os.stat(pair.root / "kept").st_ino
    (pair.root / "new").mkdir()
    os.rename(pair.root / "kept", pair.root / "new/kept")
    new = world.make(ROOT, b"new", content=b"n")
    answer = world.tell(pair.mirror, {Slot(ROOT, b"new"): new}, [world.fact(new)])
    world.tell_until_quiet(pair.mirror, answer)
    world.tell_until_quiet(pair.mirror, world.tell(pair.mirror, {Slot(ROOT, b"kept"): kept}))
    pair.check()
    assert os.stat(pair.root / "kept").st_ino == inode


def test_no_path_leads_out_through_a_link(pair: Pair, tmp_path: Path) -> None:
    world = pair.world
    top = world.make(ROOT, b"dir", Kind.DIRECTORY)
    pair.sync()
    pair.reopen()
    outside = tmp_path / "outside"
    outside.mkdir()
    os.rmdir(pair.root / "dir")
    os.symlink(outside, pair.root / "dir")
    file = world.make(top, b"f", content=b"secret")
    answer = world.tell(pair.mirror, {Slot(top, b"f"): file}, [world.fact(file)])
    assert not list(outside.iterdir())
    world.tell_until_quiet(pair.mirror, answer)
    pair.check()
    assert not list(outside.iterdir())


@pytest.mark.parametrize("crash", [True, False])
def test_a_check_after_a_restart_finds_everything_known(pair: Pair, crash: bool) -> None:
    world = pair.world
    top = world.make(ROOT, b"dir", Kind.DIRECTORY)
    world.make(top, b"f", content=b"content" * 1000)
    pair.sync()
    pair.reopen(instance=2, crash=crash)
    assert not pair.mirror.empty
    answer = world.tell_all(pair.mirror, check=True)
    assert not answer.needs
    assert not answer.looks
    pair.check()


def test_bytes_in_doubt_are_asked_for_by_a_check(pair: Pair) -> None:
    world = pair.world
    file = world.make(ROOT, b"f", content=b"1" * 100)
    pair.sync()
    told = world.inodes[file]
    world.inodes[file] = replace(told, content=b"2" * 100)
    world.tell(pair.mirror, inodes=[world.fact(file, whole=False, lowest=None)])
    world.inodes[file] = told
    pair.reopen(instance=2)
    answer = world.tell_all(pair.mirror, check=True)
    assert answer.needs == (file,)
    world.tell_until_quiet(pair.mirror, answer)
    pair.check()


def test_a_doubt_outlives_the_sender_that_had_it(pair: Pair) -> None:
    """Whoever doubted owes what differs; if he goes, size and times prove nothing to the next."""
    world = pair.world
    file = world.make(ROOT, b"f", content=b"1" * COMPARED_FROM)
    pair.sync()
    deep = world.fact(file, check=True, deep=True, whole=False, lowest=None, data=())
    assert world.tell(pair.mirror, inodes=[deep]).doubts == (file,)
    make_durable(pair.mirror)
    pair.reopen(instance=2)
    answer = world.tell_all(pair.mirror, check=True)
    assert (answer.doubts, answer.needs) == ((file,), ())
    world.tell(pair.mirror, inodes=[world.fact(file, whole=False, lowest=None, data=())])
    pair.reopen(instance=3)
    pair.check()


def test_a_large_file_that_is_not_equal_is_adopted_in_doubt(volume: Path, tmp_path: Path) -> None:
    root = volume / "adopted"
    root.mkdir()
    (root / "f").write_bytes(b"2" * COMPARED_FROM)
    inode = os.stat(root / "f").st_ino
    world = World()
    file = world.make(ROOT, b"f", content=b"1" * (COMPARED_FROM + 5))
    mirror = Mirror.open(root, tmp_path / "state", True)
    try:
        mirror.begin("source", ROOT, 1)
        answer = world.tell_all(mirror, check=True)
        assert (answer.doubts, answer.needs, answer.looks) == ((file,), (), ())
        assert os.stat(root / "f").st_mtime_ns != world.inodes[file].attributes.mtime_ns, "a time that is a lie"
        world.tell(mirror, inodes=[world.fact(file, whole=False)])
        make_durable(mirror)
        assert not world.differences(str(root))
        assert os.stat(root / "f").st_ino == inode
    finally:
        mirror.abandon()
        shutil.rmtree(root)


def test_a_full_disk_refuses_one_file_and_takes_it_later(
    volume: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = pair.world
    known = world.make(ROOT, b"known", content=b"k" * 5000)
    pair.sync()
    new = world.make(ROOT, b"new", content=b"n" * 5000)
    small = world.make(ROOT, b"small", content=b"s")
    world.inodes[known].content = b"K" * 5000
    real = os.pwrite

    def full(fd: int, data: memoryview, offset: int) -> int:
        if len(data) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    inodes = [world.fact(known, whole=False, lowest=None), world.fact(new), world.fact(small)]
    answer = world.tell(pair.mirror, dict(world.names), inodes)
    assert {refusal.id for refusal in answer.refusals} == {known, new}
    assert all("No space left" in refusal.reason for refusal in answer.refusals)
    assert set(answer.needs) == {known, new}
    assert answer.looks == (Slot(ROOT, b"new"),)
    assert (pair.root / "small").read_bytes() == b"s"
    assert not (pair.root / "new").exists()
    monkeypatch.setattr(os, "pwrite", real)
    world.tell_until_quiet(pair.mirror, answer)
    pair.check()


def test_an_immutable_file_does_not_stop_the_others(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    world = pair.world
    stuck = world.make(ROOT, b"stuck", content=b"1")
    free = world.make(ROOT, b"free", content=b"1")
    pair.sync()
    real = syscalls.renameat2

    def refuse(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int = 0) -> None:
        if b"stuck" in (old, new):
            raise OSError(errno.EPERM, "Operation not permitted")
        real(old_dir, old, new_dir, new, flags)

    monkeypatch.setattr(syscalls, "renameat2", refuse)
    for id, name in ((stuck, b"stuck"), (free, b"free")):
        del world.names[Slot(ROOT, name)]
        world.names[Slot(ROOT, name + b"2")] = id
    slots: dict[Slot, FileId | None] = {Slot(ROOT, b"stuck"): None, Slot(ROOT, b"free"): None}
    answer = world.tell(pair.mirror, {**slots, **world.names})
    assert [refusal.id for refusal in answer.refusals] == [stuck]
    assert (pair.root / "free2").exists()
    assert (pair.root / "stuck").read_bytes() == b"1"
    monkeypatch.setattr(syscalls, "renameat2", real)
    world.tell_until_quiet(pair.mirror, answer)
    pair.check()


def test_a_full_state_directory_changes_nothing_in_the_tree(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    world = pair.world
    known = world.make(ROOT, b"known", content=b"1")
    pair.sync()
    real = os.write

    def full(fd: int, data: bytes) -> int:
        real(fd, data[:5])
        return 5

    monkeypatch.setattr(os, "write", full)
    new = world.make(ROOT, b"new", content=b"2")
    world.inodes[known].content = b"3"
    answer = world.tell(pair.mirror, dict(world.names), [world.fact(new), world.fact(known, whole=False)])
    assert {refusal.id for refusal in answer.refusals} == {new, known}
    assert (pair.root / "known").read_bytes() == b"1"
    assert not (pair.root / "new").exists()
    monkeypatch.setattr(os, "write", real)
    world.tell_until_quiet(pair.mirror, answer)
    pair.reopen()
    assert pair.mirror.open_epoch == world.epoch
    world.tell_until_quiet(pair.mirror, world.tell_all(pair.mirror))
    pair.check()


def test_limbo_is_no_extra_name(pair: Pair) -> None:
    world = pair.world
    kept = world.make(ROOT, b"kept", content=b"1")
    pair.sync()
    world.tell(pair.mirror, {Slot(ROOT, b"kept"): None})
    assert pair.mirror.inspection.extra_names(ROOT) == []
    assert pair.mirror.inspection.list_directory(ROOT) == []
    assert pair.mirror.inspection.nameless(9) == [kept]
    pair.mirror.remove_extra(ROOT, b".rsyncfs-limbo")
    assert not world.tell(pair.mirror, {Slot(ROOT, b"kept"): kept}).needs
    pair.check()


def test_a_failed_sync_makes_nothing_durable_and_asks_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    world = pair.world
    file = world.make(ROOT, b"f", content=b"x" * 100)
    world.tell_all(pair.mirror)
    real = syscalls.syncfs

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(syscalls, "syncfs", fail)
    assert make_durable(pair.mirror) == 0
    monkeypatch.setattr(syscalls, "syncfs", real)
    # What came back at the next attempt is not what was written before: it says nothing about epoch 1.
    assert make_durable(pair.mirror) == 0
    assert pair.mirror.open_epoch == 1
    answer = world.tell(pair.mirror, inodes=[world.fact(file, whole=False, lowest=None)])
    assert answer.needs == (file,)
    world.tell_until_quiet(pair.mirror, answer)
    pair.check()
    assert pair.mirror.durable_epoch == world.epoch
    pair.mirror.mended()
    assert pair.mirror.open_epoch is None


def test_epochs_during_a_sync_belong_to_the_next_one(pair: Pair) -> None:
    world = pair.world
    file = world.make(ROOT, b"f", content=b"1" * 100)
    world.tell_all(pair.mirror)
    job = pair.mirror.start_sync()
    job()
    world.inodes[file].content = b"2" * 100
    world.tell(pair.mirror, inodes=[world.fact(file, whole=False, lowest=None)])
    assert pair.mirror.finish_sync(job) == (1, ())
    assert pair.mirror.open_epoch == 2
    pair.check()
    assert pair.mirror.durable_epoch == 2
    assert pair.mirror.open_epoch is None


@pytest.mark.parametrize("ticks", [0, 1], ids=["same time", "later time"])
def test_a_file_that_is_written_during_each_sync_has_the_time_that_is_durable(pair: Pair, ticks: int) -> None:
    """What is called durable has its times, however soon it is written again."""
    world = pair.world
    file = world.make(ROOT, b"f", content=b"0" * 100)
    pair.sync()
    inode = world.inodes[file]
    for number in range(1, 4):
        inode.content = b"%d" % number * 100
        inode.attributes = replace(inode.attributes, mtime_ns=inode.attributes.mtime_ns + 10**9)
        told = inode.attributes.mtime_ns
        world.tell(pair.mirror, inodes=[world.fact(file, whole=False, lowest=None)])
        job = pair.mirror.start_sync()
        job()
        inode.content = b"x" * 100
        inode.attributes = replace(inode.attributes, mtime_ns=told + ticks)
        world.tell(pair.mirror, inodes=[world.fact(file, whole=False, lowest=None)])
        assert pair.mirror.finish_sync(job) == (world.epoch - 1, ())
        assert os.stat(pair.root / "f").st_mtime_ns == told
    pair.check()


def test_a_time_that_cannot_be_set_is_told_before_the_epoch_is_durable(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = pair.world
    stuck, free = world.make(ROOT, b"stuck", content=b"1"), world.make(ROOT, b"free", content=b"1")
    assert not world.tell_all(pair.mirror).refusals
    real, number = syscalls.utimens, (pair.root / "stuck").stat().st_ino

    def refuse(fd: int, *rest: object) -> None:
        if os.fstat(fd).st_ino == number:
            raise OSError(errno.EPERM, "Operation not permitted")
        real(fd, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(syscalls, "utimens", refuse)
    job = pair.mirror.start_sync()
    job()
    epoch, lost = pair.mirror.finish_sync(job)
    assert (epoch, [refusal.id for refusal in lost]) == (world.epoch, [stuck])
    monkeypatch.setattr(syscalls, "utimens", real)
    pair.reopen()  # also a receiver that is killed now knows that the file is not what it should be
    answer = world.tell_all(pair.mirror, check=True)
    assert answer.needs == (stuck,)
    assert free not in answer.needs
    world.tell_until_quiet(pair.mirror, answer)
    pair.check()


def test_bytes_that_the_disk_does_not_take_are_the_only_ones_that_come_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = pair.world
    bad, good = world.make(ROOT, b"bad", content=b"1" * 100), world.make(ROOT, b"good", content=b"1" * 100)
    world.tell_all(pair.mirror)
    real_syncfs, real_fsync, number = syscalls.syncfs, os.fsync, (pair.root / "bad").stat().st_ino
    told: list[bool] = []

    def syncfs(fd: int) -> None:  # as the kernel does: an error is told once
        real_syncfs(fd)
        if not told:
            told.append(True)
            raise OSError(errno.EIO, "Input/output error")

    def fsync(fd: int) -> None:
        if os.fstat(fd).st_ino == number:
            raise OSError(errno.EIO, "Input/output error")
        real_fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(syscalls, "syncfs", syncfs)
        patch.setattr(os, "fsync", fsync)
        job = pair.mirror.start_sync()
        job()
    epoch, lost = pair.mirror.finish_sync(job)
    assert (epoch, [refusal.id for refusal in lost]) == (1, [bad])
    assert os.stat(pair.root / "good").st_mtime_ns == world.inodes[good].attributes.mtime_ns
    world.tell_until_quiet(pair.mirror, world.tell(pair.mirror, inodes=[world.fact(bad)]))
    pair.check()


def test_a_file_that_comes_again_keeps_its_bytes_until_the_new_ones_are_there(pair: Pair) -> None:
    world = pair.world
    file = world.make(ROOT, b"f", content=b"1" * 100_000)
    pair.sync()
    world.inodes[file].content = b"2" * 60_000
    first = world.fact(file, partial=True, data=(Extent(0, 4096),))
    world.tell(pair.mirror, inodes=[first])
    assert (pair.root / "f").read_bytes() == b"2" * 4096 + b"1" * 95_904
    rest = world.fact(file, whole=False, lowest=None, data=(Extent(4096, 60_000 - 4096),))
    world.tell(pair.mirror, inodes=[rest])
    pair.check()


@pytest.mark.parametrize("crashes", [1, 2])
def test_an_open_epoch_is_remembered(pair: Pair, crashes: int) -> None:
    """However often the receiver starts while the sender is away; until that has sent what it owed."""
    pair.world.make(ROOT, b"f", content=b"x")
    pair.world.tell_all(pair.mirror)
    for _ in range(crashes):
        pair.reopen()
        assert pair.mirror.open_epoch == 1
        assert pair.mirror.durable_epoch == 0
    pair.reopen(crash=False)
    assert pair.mirror.open_epoch == 1
    pair.sync()
    assert pair.mirror.open_epoch == 1
    pair.mirror.mended()
    assert pair.mirror.open_epoch is None
    pair.reopen()
    assert pair.mirror.open_epoch is None


@pytest.mark.parametrize("synced", [False, True], ids=["without its intents", "with its intents"])
def test_a_power_cut_in_an_epoch_leaves_it_open(pair: Pair, synced: bool) -> None:
    world = pair.world
    world.make(ROOT, b"f", content=b"x")
    pair.sync()
    pair.mirror._inventory.set_meta(boot="another")
    pair.reopen()
    assert pair.mirror.open_epoch is None  # there was none
    world.make(ROOT, b"g", content=b"y")
    world.tell_all(pair.mirror)
    if not synced:
        for log in pair.state.glob("intents.*"):
            log.write_bytes(b"")
    pair.mirror._inventory.set_meta(boot="another")
    pair.reopen()
    assert pair.mirror.open_epoch == world.epoch


def test_after_a_power_cut_everything_is_looked_at(pair: Pair) -> None:
    world = pair.world
    top = world.make(ROOT, b"dir", Kind.DIRECTORY)
    file = world.make(top, b"f", content=b"1" * 100)
    world.make(ROOT, b"g", content=b"2")
    pair.sync()
    # The disk as it could be: names of an epoch that was lost with its intents, and bytes.
    os.rename(pair.root / "dir", pair.root / "renamed")
    (pair.root / "renamed/f").write_bytes(b"x" * 100)
    os.unlink(pair.root / "g")
    pair.mirror._inventory.set_meta(boot="another")
    pair.reopen(instance=2)
    assert pair.mirror.inspection.list_directory(ROOT)[0].id == top
    answer = world.tell_all(pair.mirror, check=True)
    assert file in answer.needs
    world.tell_until_quiet(pair.mirror, answer)
    pair.check()


def test_what_is_there_already_is_adopted(volume: Path, tmp_path: Path) -> None:
    root = volume / "adopted"
    (root / "dir").mkdir(parents=True)
    (root / "dir/same").write_bytes(b"same" * 100)
    os.link(root / "dir/same", root / "dir/same2")
    (root / "dir/other").write_bytes(b"diff")
    (root / "extra").write_bytes(b"extra")
    os.symlink("target", root / "link")
    same = os.stat(root / "dir/same")
    with pytest.raises(EnvironmentFault, match="--adopt"):
        Mirror.open(root, tmp_path / "state", False)
    world = World()
    top = world.make(ROOT, b"dir", Kind.DIRECTORY)
    file = world.make(top, b"same", content=b"same" * 100, mtime_ns=same.st_mtime_ns, mode=0o600)
    world.names[Slot(top, b"same2")] = file
    other = world.make(top, b"other", content=b"1234")
    world.make(ROOT, b"link", Kind.SYMLINK, target=b"target")
    mirror = Mirror.open(root, tmp_path / "state", True)
    try:
        assert not mirror.empty
        mirror.begin("source", ROOT, 1)
        answer = world.tell_all(mirror, check=True)
        assert answer.needs == (other,)
        world.tell_until_quiet(mirror, answer)
        assert mirror.inspection.extra_names(ROOT) == [b"extra"]
        mirror.remove_extra(ROOT, b"extra")
        make_durable(mirror)
        assert not world.differences(str(root))
        assert os.stat(root / "dir/same").st_ino == same.st_ino
    finally:
        mirror.abandon()
        shutil.rmtree(root)


def test_two_ids_never_adopt_one_inode(volume: Path, tmp_path: Path) -> None:
    root = volume / "adopted"
    root.mkdir()
    (root / "a").write_bytes(b"same")
    os.link(root / "a", root / "b")
    mtime = os.stat(root / "a").st_mtime_ns
    world = World()
    for name in (b"a", b"b"):
        world.make(ROOT, name, content=b"same", mtime_ns=mtime)
    mirror = Mirror.open(root, tmp_path / "state", True)
    try:
        mirror.begin("source", ROOT, 1)
        answer = world.tell_all(mirror, check=True)
        assert len(answer.needs) == 1
        world.tell_until_quiet(mirror, answer)
        make_durable(mirror)
        assert not world.differences(str(root))
    finally:
        mirror.abandon()
        shutil.rmtree(root)


def test_roots_that_are_refused(volume: Path, tmp_path: Path, pair: Pair) -> None:
    with pytest.raises(EnvironmentFault, match="does not exist"):
        Mirror.open(volume / "none", tmp_path / "s", False)
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match="not a directory"):
        Mirror.open(tmp_path / "file", tmp_path / "s", False)
    with pytest.raises(EnvironmentFault, match="another receiver"):
        Mirror.open(pair.root, tmp_path / "s", False)
    other = volume / "other"
    other.mkdir()
    with pytest.raises(EnvironmentFault, match="lies inside"):
        Mirror.open(other, other / "state", False)
    shutil.rmtree(other)
    with pytest.raises(RefusedError, match="another source"):
        pair.mirror.begin("another", ROOT, 7)
    with pytest.raises(EnvironmentFault, match="no file handles"):
        Mirror.open(Path("/proc"), tmp_path / "s2", False)


def test_a_replaced_root_is_noticed(pair: Pair) -> None:
    pair.world.make(ROOT, b"f", content=b"x")
    pair.sync()
    assert pair.mirror.still_there()
    aside = pair.root.parent / "aside"
    pair.root.rename(aside)
    assert not pair.mirror.still_there()
    pair.root.mkdir()
    assert not pair.mirror.still_there()
    pair.mirror.abandon()
    with pytest.raises(EnvironmentFault, match="not the directory"):
        Mirror.open(pair.root, pair.state, False)
    pair.root.rmdir()
    aside.rename(pair.root)
    pair.mirror = Mirror.open(pair.root, pair.state, False)


@pytest.mark.parametrize("kills", [1, 2])
def test_a_new_file_that_nobody_tells_of_again_gets_its_time(pair: Pair, kills: int) -> None:
    """A sender that follows may know it by an older state of its, and have nothing to say."""
    world = pair.world
    pair.sync()
    world.make(ROOT, b"f", content=b"x" * 10, mtime_ns=5)
    world.tell_all(pair.mirror)
    for _ in range(kills):
        pair.reopen()
    pair.check()


def test_facts_that_lie_change_nothing(pair: Pair) -> None:
    world = pair.world
    file = world.make(ROOT, b"f", content=b"x" * 10)
    facts, payload = world.epoch_of({Slot(ROOT, b"f"): file}, [world.fact(file)])
    for wrong in ([], [(0, 0, memoryview(b"x" * 9))], [(1, 0, payload[0][2])], [(0, 1, payload[0][2])], payload * 2):
        with pytest.raises(RemoteError):
            pair.mirror.apply(facts, wrong)
    with pytest.raises(RemoteError):
        pair.mirror.apply(*world.epoch_of({Slot(ROOT, b"../escape"): file}, [world.fact(file)]))
    assert not list(pair.root.iterdir())


def test_attributes_and_listing_tell_what_is_there(pair: Pair) -> None:
    world = pair.world
    file = world.make(ROOT, b"f", content=b"x" * 10, mode=0o600)
    pair.sync()
    (pair.root / "foreign").mkdir()
    entries = [(entry.name, entry.kind, entry.id) for entry in pair.mirror.inspection.list_directory(ROOT)]
    assert entries == [(b"f", Kind.FILE, file), (b"foreign", Kind.DIRECTORY, None)]
    kind, size, attributes = pair.mirror.inspection.attributes(file)
    assert (kind, size, attributes.mode) == (Kind.FILE, 10, 0o600)
    fd = pair.mirror.inspection.open_content(file)
    assert os.pread(fd, 100, 0) == b"x" * 10
    os.close(fd)
    with pytest.raises(KeyError):
        pair.mirror.inspection.attributes(FileId(0, 0, 999, 0))
    os.unlink(pair.root / "f")
    with pytest.raises(FileNotFoundError):
        pair.mirror.inspection.attributes(file)


def test_limbo_is_nobodys_business_whether_it_is_there_or_not(pair: Pair) -> None:
    """It may go between a look at the root and the judgement of what was seen."""
    assert pair.mirror.inspection.is_own(ROOT, LIMBO_NAME)
    pair.world.make(ROOT, LIMBO_NAME, content=b"the user's")
    pair.sync()
    assert not pair.mirror.inspection.is_own(ROOT, LIMBO_NAME)
    assert not pair.mirror.inspection.is_own(ROOT, b"f")

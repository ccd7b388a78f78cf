"""New files of the replica that go straight into their places, and those for which that does not do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replicator import syscalls
from replicator.model import FileId, Kind, Slot
from tests.native.mirror_world import ROOT
from tests.native.test_mirror import Pair, pair, volume

__all__ = ["pair", "volume"]

MANY = 300


def grow(pair: Pair) -> list[FileId]:
    """A directory that the replica has, and many new files in it that it has not."""
    world = pair.world
    directory = world.make(ROOT, b"d", Kind.DIRECTORY)
    pair.sync()
    return [
        world.make(directory, b"%d" % number, content=b"%d" % number * 100 if number % 7 else b"")
        for number in range(MANY)
    ]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The names of directories that are made meanwhile."""
    names: list[bytes] = []
    real = os.mkdir

    def mkdir(path: Any, *rest: Any, **options: Any) -> None:
        names.append(os.fsencode(path))
        real(path, *rest, **options)

    monkeypatch.setattr(os, "mkdir", mkdir)
    yield names
    monkeypatch.setattr(os, "mkdir", real)


def test_new_files_leave_no_trace_but_themselves(pair: Pair, made: list[bytes]) -> None:
    grow(pair)
    made.clear()
    assert not pair.world.tell_all(pair.mirror).refusals
    assert made == []
    pair.check()


def test_owner_mode_and_attributes_are_those_of_the_source(pair: Pair) -> None:
    world = pair.world
    world.make(ROOT, b"f", content=b"x", mode=0o6751, uid=12, gid=13, mtime_ns=1_234_567_891_000_000_000)
    world.make(ROOT, b"g", content=b"x", mode=0o666, xattrs={b"user.a": b"b"})
    world.make(ROOT, b"h", mode=0, uid=1)
    pair.sync()
    pair.check()


@pytest.mark.parametrize("own", [b"other", b".rsyncfs-limbo"])
def test_where_no_file_can_be_made_without_a_name(pair: Pair, monkeypatch: pytest.MonkeyPatch, own: bytes) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, *rest, **options)

    grow(pair)
    pair.world.make(ROOT, own, content=b"the user's")
    monkeypatch.setattr(os, "open", refuse)
    assert not pair.world.tell_all(pair.mirror).refusals
    monkeypatch.setattr(os, "open", real)
    pair.check()


def test_what_somebody_else_put_there_makes_way(pair: Pair) -> None:
    grow(pair)
    (pair.root / "d" / "8").write_text("of somebody else")
    (pair.root / "d" / "9").mkdir()
    (pair.root / "d" / "9" / "more").write_text("of somebody else")
    pair.world.tell_until_quiet(pair.mirror, pair.world.tell_all(pair.mirror))
    pair.check()


def test_one_that_does_not_fit_is_refused_by_itself(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    files = grow(pair)
    real = os.pwrite

    def full(fd: int, data: memoryview, offset: int) -> int:
        if bytes(data[:3]) == b"100":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    answer = pair.world.tell_all(pair.mirror)
    assert [refusal.id for refusal in answer.refusals] == [files[100]]
    assert not (pair.root / "d" / "100").exists()
    assert (pair.root / "d" / "101").read_bytes() == b"101" * 100
    monkeypatch.setattr(os, "pwrite", real)
    pair.world.tell_until_quiet(pair.mirror, answer)
    pair.check()


def test_a_receiver_killed_between_two_names_goes_on(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    files = grow(pair)
    real, left = syscalls.linkat, [150]

    def die(*rest: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        real(*rest)

    monkeypatch.setattr(syscalls, "linkat", die)
    with pytest.raises(Killed):
        pair.world.tell_all(pair.mirror)
    monkeypatch.setattr(syscalls, "linkat", real)
    assert len(os.listdir(pair.root / "d")) == 149
    pair.reopen()
    assert [pair.mirror.knows(id) for id in files] == [True] * 149 + [False] * (MANY - 149)
    pair.world.tell_until_quiet(pair.mirror, pair.world.tell_all(pair.mirror))
    pair.check()


def test_times_are_set_without_the_privilege_to_open_by_handle(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    world = pair.world
    world.make(ROOT, b"f", content=b"x", mtime_ns=1_234_567_891_000_000_000)
    world.tell_all(pair.mirror)

    def refuse(*_: Any) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(syscalls, "open_by_handle_at", refuse)
    job = pair.mirror.start_sync()
    job()
    assert pair.mirror.finish_sync(job) == (world.epoch, ())
    assert Path(pair.root / "f").stat().st_mtime_ns == 1_234_567_891_000_000_000


def test_a_place_that_was_not_left_is_not_taken(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory is to leave its name to a new file and cannot, and somebody else removes it just then."""
    world = pair.world
    old = world.make(ROOT, b"a", Kind.DIRECTORY)
    pair.sync()
    real = syscalls.renameat2

    def refuse(old_dir: int, name: bytes, new_dir: int, new: bytes, flags: int = 0) -> None:
        if name == b"a":
            (pair.root / "a").rmdir()
            raise OSError(errno.EPERM, "Operation not permitted")
        real(old_dir, name, new_dir, new, flags)

    monkeypatch.setattr(syscalls, "renameat2", refuse)
    del world.names[Slot(ROOT, b"a")]
    world.names[Slot(ROOT, b"b")] = old
    new = world.make(ROOT, b"a", content=b"new")
    answer = world.tell(pair.mirror, {Slot(ROOT, b"b"): old, Slot(ROOT, b"a"): new}, [world.fact(new)])
    assert [refusal.id for refusal in answer.refusals] == [old]
    assert not (pair.root / "a").exists()
    assert answer.looks
    monkeypatch.setattr(syscalls, "renameat2", real)
    world.tell_until_quiet(pair.mirror, answer)
    pair.check()

"""A replica on real filesystems under random changes, told in random order and portions, with the receiver dying at
random system calls: after what is owed is told again, it is identical."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from replicator import syscalls
from replicator.mirror.mirror import Mirror
from replicator.model import Answer, Extent, FileId, InodeFact, Kind, Slot
from tests.native.mirror_world import ROOT, World, make_durable
from tests.support.filesystems import FILESYSTEMS, filesystem

NAMES = [b"a", b"b", b"\xff\n", b"n" * 12, b".rsyncfs-limbo"]
SECONDS = 60


class DiedError(BaseException):
    """The receiver's process is gone."""


class Fuse:
    """Dies at the n-th call of whatever is wrapped; half of the time just before it, half just after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        for name in ("renameat2", "linkat", "openat2", "set_xattr", "utimens", "fallocate"):
            self._wrap(monkeypatch, syscalls, name)
        import os

        for name in ("unlink", "rmdir", "mkdir", "pwrite", "ftruncate", "chown", "chmod", "symlink", "write"):
            self._wrap(monkeypatch, os, name)

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(module, name)

        def call(*args: Any, **options: Any) -> Any:
            if self.left < 0:
                return real(*args, **options)
            self.left -= 1
            if self.left == 0:
                raise DiedError
            result = real(*args, **options)
            if self.left == 1 and name != "openat2":
                self.left = -1
                raise DiedError
            return result

        monkeypatch.setattr(module, name, call)


@dataclass
class Debt:
    """What one inode owes: ranges, lowest size, all of it."""

    ranges: list[tuple[int, int]] = field(default_factory=list)
    lowest: int | None = None
    whole: bool = False
    check: bool = False

    def add(self, other: Debt) -> None:
        self.ranges += other.ranges
        if other.lowest is not None:
            self.lowest = other.lowest if self.lowest is None else min(self.lowest, other.lowest)
        self.whole |= other.whole
        self.check |= other.check


class Driver:
    """The sender's part, in its simplest form: dirty sets, epochs in flight, folding back."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.world = World()
        self.slots: dict[Slot, None] = {}
        self.debts: dict[FileId, Debt] = {ROOT: Debt(whole=True)}
        self.dead: dict[FileId, None] = {}
        self.flying: list[tuple[int, list[Slot], dict[FileId, Debt], list[FileId]]] = []

    def set(self, slot: Slot, id: FileId | None) -> None:
        names = self.world.names
        before = names.get(slot)
        if id is None:
            del names[slot]
        else:
            names[slot] = id
        self.slots[slot] = None
        if before is not None and before not in names.values():
            self._die(before)

    def _die(self, id: FileId) -> None:
        del self.world.inodes[id]
        self.debts.pop(id, None)
        self.dead[id] = None

    def change(self) -> None:
        rng, world = self.rng, self.world
        directories = [id for id, inode in world.inodes.items() if inode.kind is Kind.DIRECTORY]
        slot = Slot(rng.choice(directories), rng.choice(NAMES))
        other = Slot(rng.choice(directories), rng.choice(NAMES))
        here, there = world.names.get(slot), world.names.get(other)
        what = rng.random()
        if here is None:
            if there is not None and what < 0.2 and world.inodes[there].kind is not Kind.DIRECTORY:
                self.set(slot, there)
                return
            kind = rng.choice([Kind.FILE, Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.FIFO, Kind.CHARACTER])
            options: dict[str, Any] = {
                "mtime_ns": rng.randrange(2**60),
                "uid": rng.randrange(3),
                "xattrs": self._xattrs(),
            }
            if kind is Kind.SYMLINK:
                options = {"target": b"to nowhere", "mtime_ns": 77}
            elif kind is Kind.CHARACTER:
                options = {"rdev": 0x103}
            elif kind is Kind.FIFO:
                options = {}
            content = rng.randbytes(rng.choice([0, 1, 4096, 70_000])) if kind is Kind.FILE else b""
            id = world.make(slot.parent, slot.name, kind, content, **options)
            self.slots[slot] = None
            self.debts[id] = Debt(whole=True)
        elif what < 0.3 and world.inodes[here].kind is not Kind.DIRECTORY:
            self._touch(here)
        elif what < 0.5:
            if not any(named.parent == here for named in world.names):
                self.set(slot, None)
        elif what < 0.65 and there is not None:
            if not self._under(here, other.parent) and not self._under(there, slot.parent):
                world.names[slot], world.names[other] = there, here
                self.slots.update({slot: None, other: None})
        elif here != there and not self._under(here, other.parent):
            if there is not None and any(named.parent == there for named in world.names):
                return
            del world.names[slot]
            self.slots[slot] = None
            self.set(other, here)

    def _under(self, top: FileId, id: FileId) -> bool:
        while id not in (top, ROOT):
            id = next(slot.parent for slot, named in self.world.names.items() if named == id)
        return id == top

    def _xattrs(self) -> dict[bytes, bytes]:
        return {name: b"v" for name in (b"trusted.t", b"user.u") if self.rng.random() < 0.4}

    def _touch(self, id: FileId) -> None:
        """Change bytes, size or attributes of one inode."""
        rng, inode = self.rng, self.world.inodes[id]
        debt = self.debts.setdefault(id, Debt())
        inode.attributes = replace(inode.attributes, mtime_ns=rng.randrange(2**60), ctime_ns=rng.randrange(2**60))
        if inode.kind is not Kind.FILE:
            return
        if rng.random() < 0.4:
            inode.attributes = replace(
                inode.attributes, mode=rng.choice([0o600, 0o4755, 0o1777]), gid=rng.randrange(3), xattrs=self._xattrs()
            )
        if rng.random() < 0.3:
            size = rng.randrange(len(inode.content) + 5000)
            inode.content = inode.content[:size].ljust(size, b"\0")
            debt.lowest = size if debt.lowest is None else min(size, debt.lowest)
        for _ in range(rng.randrange(3)):
            at, data = rng.randrange(len(inode.content) + 100), rng.randbytes(rng.choice([1, 100, 9000]))
            inode.content = inode.content[:at].ljust(at, b"\0") + data + inode.content[at + len(data) :]
            debt.ranges.append((at, at + len(data)))

    def _fact(self, id: FileId, debt: Debt) -> tuple[InodeFact, Debt | None]:
        """The fact, and what remains owed if it is only a slice."""
        fact = self.world.fact(id)
        if fact.kind is not Kind.FILE:
            return fact, None
        if debt.check and not debt.whole:
            return replace(fact, check=True, whole=False, lowest=None, data=()), None
        if debt.whole:
            if fact.size > 5000 and self.rng.random() < 0.3:
                part = replace(fact, partial=True, data=(Extent(0, 4096),))
                return part, Debt(ranges=[(4096, 2**62)])
            return fact, None
        merged: list[Extent] = []
        for start, end in sorted(debt.ranges):
            end = min(end, fact.size)
            if merged and start <= merged[-1].end:
                merged[-1] = Extent(merged[-1].offset, max(end, merged[-1].end) - merged[-1].offset)
            elif start < end:
                merged.append(Extent(start, end - start))
        return replace(fact, whole=False, lowest=debt.lowest, data=tuple(merged)), None

    def flush(self, mirror: Mirror, everything: bool = False) -> bool:
        """One epoch with some of what is owed. False if nothing is."""
        rng = self.rng
        slots, ids, dead = list(self.slots), list(self.debts), list(self.dead)
        for some in (slots, ids, dead):
            rng.shuffle(some)
            if not everything:
                del some[rng.randint(0, len(some)) :]
        if not (slots or ids or dead):
            return bool(self.slots or self.debts or self.dead)
        debts = {id: self.debts.pop(id) for id in ids}
        for slot in slots:
            del self.slots[slot]
        for id in dead:
            del self.dead[id]
        facts = []
        for id, debt in debts.items():
            fact, rest = self._fact(id, debt)
            facts.append(fact)
            if rest is not None:
                self.debts[id] = rest
        message = self.world.epoch_of({slot: self.world.names.get(slot) for slot in slots}, facts, dead)
        self.flying.append((self.world.epoch, slots, debts, dead))
        self.hear(mirror.apply(*message))
        return True

    def hear(self, answer: Answer) -> None:
        assert not answer.refusals
        self.slots.update(dict.fromkeys(answer.looks))
        for id in answer.needs:
            if id not in self.world.inodes:
                continue
            self.debts[id] = Debt(whole=True)
            names = self.world.names.items()
            self.slots.update(dict.fromkeys(slot for slot, named in names if id in (named, slot.parent)))

    def durable(self, epoch: int) -> None:
        self.flying = [flight for flight in self.flying if flight[0] > epoch]

    def restart(self) -> None:
        """Another instance: what was owed is forgotten, everything is compared."""
        self.flying = []
        self.dead = {}
        self.slots = dict.fromkeys(self.world.names)
        self.debts = {id: Debt(check=True) for id in self.world.inodes}

    def compare_names(self, mirror: Mirror) -> None:
        """Look again at every name that the replica has, and at what has none."""
        for id, inode in self.world.inodes.items():
            if inode.kind is Kind.DIRECTORY:
                for name in mirror.inspection.names(id):
                    self.slots[Slot(id, name)] = None
        for id in mirror.inspection.nameless(10_000):
            if id not in self.world.inodes:
                self.dead[id] = None

    def fold_back(self) -> None:
        for _, slots, debts, dead in self.flying:
            self.slots.update(dict.fromkeys(slots))
            for id, debt in debts.items():
                if id in self.world.inodes:
                    self.debts.setdefault(id, Debt()).add(debt)
            self.dead.update(dict.fromkeys(dead))
        self.flying = []


@pytest.fixture(scope="module", params=FILESYSTEMS)
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with filesystem(request.param, tmp_path_factory.mktemp(request.param), 512 * 2**20) as mounted:
        yield mounted


def visible(root: Path) -> list[tuple[str, int, int, bytes]]:
    """Names, inodes, modes and contents as somebody who takes the replica over finds them."""
    found = []
    for path in sorted(root.rglob("*")):
        if ".rsyncfs-limbo" in path.parts[len(root.parts)]:
            continue
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found.append((str(path), status.st_ino, status.st_mode, content))
    return found


def cut_power(state: Path, kept: Path) -> None:
    """The receiver's state is what was durable; the tree is as new as can be."""
    with contextlib.closing(sqlite3.connect(state / "inventory.sqlite")) as inventory:
        named = "SELECT key, value FROM meta WHERE key NOT IN ('durable_epoch', 'witnesses')"
        at_once = inventory.execute(named).fetchall()  # what is stored by itself is on the disk at once
    shutil.rmtree(state)
    shutil.copytree(kept, state)
    with contextlib.closing(sqlite3.connect(state / "inventory.sqlite", isolation_level=None)) as inventory:
        inventory.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", at_once)
        inventory.execute("INSERT OR REPLACE INTO meta VALUES ('boot', 'another'), ('clean', '0')")


def settle(driver: Driver, mirror: Mirror) -> None:
    for _ in range(60):
        if not driver.flush(mirror, everything=True):
            return
    raise AssertionError("never quiet")


def play(rng: random.Random, root: Path, state: Path, fuse: Fuse) -> None:
    driver = Driver(rng)
    instance = 1
    kept = state.with_name("kept")
    mirror = Mirror.open(root, state, False)
    mirror.begin("source", ROOT, 1)
    try:
        for _ in range(rng.randint(2, 10)):
            for _ in range(rng.randint(0, 8)):
                driver.change()
            whole: object = visible(root)
            if rng.random() < 0.4:
                fuse.left = rng.randint(1, 60)
            try:
                driver.flush(mirror)
                whole = None
                if rng.random() < 0.3:
                    driver.durable(make_durable(mirror))
                    fuse.left = -1
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.copytree(state, kept, ignore=shutil.ignore_patterns("*-shm"))
            except DiedError:
                mirror.abandon()
                if kept.exists() and rng.random() < 0.3:
                    cut_power(state, kept)
                fuse.left = rng.randint(1, 30) if rng.random() < 0.3 else -1
                try:
                    mirror = Mirror.open(root, state, False)
                except DiedError:
                    fuse.left = -1
                    mirror = Mirror.open(root, state, False)
                fuse.left = -1
                if rng.random() < 0.3:  # who asks the receiver later is told no less
                    mirror.abandon()
                    mirror = Mirror.open(root, state, False)
                told = max((flight[0] for flight in driver.flying), default=0)
                complete = mirror.durable_epoch >= told or visible(root) == whole
                assert mirror.open_epoch or complete, "torn, and called complete"
                mirror.begin("source", ROOT, instance)
                driver.fold_back()
            fuse.left = -1
            if rng.random() < 0.1:
                instance += 1
                mirror.begin("source", ROOT, instance)
                driver.restart()
        settle(driver, mirror)
        for _ in range(2):  # what loses its name by the first comparison is found nameless by the second
            driver.compare_names(mirror)
            settle(driver, mirror)
        driver.durable(make_durable(mirror))
        differences = driver.world.differences(str(root))
        assert not differences, "\n".join(differences)
        assert not driver.flying
    finally:
        fuse.left = -1
        mirror.abandon()


@pytest.mark.parametrize("seed", range(60))
def test_a_dying_receiver_loses_nothing(
    ground: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ground / f"root{seed}"
    root.mkdir()
    fuse = Fuse(monkeypatch)
    play(random.Random(seed), root, tmp_path / "state", fuse)

"""Looks at a namespace that is made up. The many interleavings are the model's (tests/model)."""

from __future__ import annotations

import errno

import pytest

from replicator.dirty.generations import Generations
from replicator.model import FileId, Kind, Slot
from replicator.tree.exclude import Exclude
from replicator.tree.index import TreeIndex
from replicator.tree.resolver import DirectoryGone, Found, Resolver

ROOT = FileId(1, 0, 2, 0)
DEEP = 3000


def directory(level: int) -> FileId:
    return FileId(1, 0, 100 + level, 1)


class Chain:
    """A chain of directories, each called b"d" in the one above, of which only the first `alive` are there still."""

    def __init__(self, alive: int) -> None:
        self.left = alive
        self.sick: set[FileId] = set()

    def _there(self, id: FileId) -> bool:
        return id == ROOT or (id.ino - 100 < self.left and id not in self.sick)

    def lookup(self, slot: Slot) -> Found | None:
        if not self._there(slot.parent):
            raise DirectoryGone
        level = 0 if slot.parent == ROOT else slot.parent.ino - 100 + 1
        return Found(directory(level), Kind.DIRECTORY) if level < self.left and slot.name == b"d" else None

    def names(self, directory: FileId) -> dict[bytes, int] | None:
        if not self._there(directory):
            return None
        return {b"d": 0} if directory == ROOT or directory.ino - 100 + 1 < self.left else {}

    def alive(self, id: FileId) -> bool:
        return self._there(id)


@pytest.fixture
def resolver() -> Resolver:
    """One that knows a deep chain of directories."""
    resolver = Resolver(TreeIndex(ROOT), Exclude([]), Generations())
    resolver.list(ROOT, 1)
    chain = Chain(DEEP)
    while resolver.workable:
        resolver.resolve(chain, 1)
    resolver.complete = True
    assert resolver.index.is_member(directory(DEEP - 1))
    return resolver


def test_a_deep_chain_of_directories_is_gone_and_the_deepest_are_looked_at_first(resolver: Resolver) -> None:
    gone = Chain(0)
    for level in reversed(range(DEEP)):
        resolver.list(directory(level), 2)
    resolver.list(ROOT, 2)
    dead: list[FileId] = []
    while resolver.pending:
        changes = resolver.resolve(gone, 3)
        assert not changes.failed
        dead += [id for id, _ in changes.dead]
    assert sorted(dead) == [directory(level) for level in range(DEEP)]
    assert len(resolver.index) == 1


def test_a_directory_that_only_seems_to_be_gone_is_kept(resolver: Resolver) -> None:
    """Its handle is stale, but its name still leads to it: the disk is sick, nothing was removed."""
    chain = Chain(DEEP)
    chain.sick = {directory(level) for level in range(10, DEEP)}
    resolver.list(directory(DEEP - 1), 2)
    changes = resolver.resolve(chain, 3)
    assert [error.errno for _, error in changes.failed] == [errno.EIO]
    assert not changes.dead
    assert resolver.workable == 1
    assert resolver.index.is_member(directory(DEEP - 1))

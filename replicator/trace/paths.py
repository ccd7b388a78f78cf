"""The paths of inodes below a directory, for records that were drained just before.

Takes the directory and a queue of looks at names, wherever those come from; gives some path of an inode, relative to
the directory. An inode whose name has gone in the same moment still has the path that it had, for it was written to
there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

from replicator.capture.names import ListLook, Look, MovedLook, Overflow, SlotLook
from replicator.dirty.generations import Generations
from replicator.model import FileId, Slot
from replicator.source.look import SourceNamespace
from replicator.tree.exclude import Exclude
from replicator.tree.handles import SourceRoot
from replicator.tree.index import TreeIndex
from replicator.tree.resolver import Changes, Resolver

LOOKS = 512
"""Names that are looked at before the caller may breathe."""

KNOWN = 1 << 17
"""Paths that are kept ready."""

TOLD = 1 << 18
"""Looks that may wait."""


class NameQueue(Protocol):
    """Where it is told that names changed, for the whole filesystem."""

    def drain_queued(self) -> list[Look]:
        """Looks of at least all events that waited at the call; if `behind` afterwards, of the first of them."""

    @property
    def behind(self) -> bool:
        """Whether some of those wait still."""

    def advance(self) -> None:
        """What was drained is done."""


class ToldNames:
    """A queue of what a sensor's records told, bounded as the kernel's is."""

    def __init__(self) -> None:
        self._looks: list[Look] = []

    def add(self, looks: Iterable[Look]) -> None:
        """Queue them; too many become one look at everything."""
        self._looks.extend(looks)
        if len(self._looks) > TOLD:
            self._looks = [Overflow()]

    def drain_queued(self) -> list[Look]:
        """See `NameQueue.drain_queued`."""
        looks, self._looks = self._looks, []
        return looks

    @property
    def behind(self) -> bool:
        """See `NameQueue.behind`."""
        return False

    def advance(self) -> None:
        """See `NameQueue.advance`."""


class Paths:
    """The names below a directory, followed while they change."""

    def __init__(self, source: SourceRoot, names: NameQueue) -> None:
        """Both stay the caller's. Knows nothing before the first `update`."""
        self._names = names
        self._view = SourceNamespace(source)
        self._index = TreeIndex(source.id)
        self._generations = Generations()
        self._resolver = Resolver(self._index, Exclude(()), self._generations)
        self._resolver.complete = True
        self._resolver.list(self._index.root, time.monotonic_ns())
        self._known: dict[FileId, bytes] = {}
        self._before: dict[FileId, bytes] = {}
        """The paths that were known before this update."""
        self._passing: dict[FileId, Slot] = {}
        """Names that were told of since the last update, and may be gone again."""

    def update(self, breathe: Callable[[], None]) -> None:
        """Look at every name that was told to have changed. Calls `breathe` now and then, for it can take long."""
        self._before, self._passing = {}, {}
        now = time.monotonic_ns()
        told = True
        while told:
            for look in self._names.drain_queued():
                self._take(look, now)
            self._names.advance()
            told = self._names.behind
        again = self._resolver.waiting or self._resolver.workable > 0
        while again:
            changes = self._resolver.resolve(self._view, time.monotonic_ns(), LOOKS)
            self._forget(changes)
            breathe()
            again = self._resolver.workable > 0 and not changes.failed

    def _take(self, look: Look, now: int) -> None:
        if isinstance(look, SlotLook):
            self._resolver.look(look.slot, now)
            if look.target is not None:
                self._passing[look.target] = look.slot
        elif isinstance(look, MovedLook):
            for slot in self._index.slots_of(look.id):
                self._resolver.look(slot, now)
        elif isinstance(look, ListLook):
            self._resolver.list(look.id, now)
        elif isinstance(look, Overflow):
            for id in self._index.subtree(self._index.root):
                if self._index.is_directory(id):
                    self._resolver.list(id, now)

    @property
    def waiting(self) -> bool:
        """Whether an update is due although nothing is told: a name that is gone may show up elsewhere for a while."""
        return self._resolver.waiting

    def path(self, id: FileId) -> bytes | None:
        """A path; None if the inode has none below the directory, and had none a moment ago."""
        path = self._known.get(id)
        if path is not None:
            return path
        path = self._index.path(id)
        if path is None:
            return self._before.get(id) or self._passed(id)
        if len(self._known) >= KNOWN:
            self._known.clear()
        self._known[id] = path
        return path

    def close(self) -> None:
        """Close what was opened."""
        self._view.close()

    def _passed(self, id: FileId) -> bytes | None:
        slot = self._passing.get(id)
        if slot is None:
            return None
        parent = self._index.path(slot.parent)
        if parent is None:
            return None
        return parent + b"/" + slot.name if parent else slot.name

    def _forget(self, changes: Changes) -> None:
        """Paths that may be others now."""
        fresh = {id for id, _ in changes.members}
        moved = bool(changes.dead)
        for slot, due in changes.slots:
            self._generations.release(due.generation)
            for id in (due.before, self._index.get(slot)):
                if id is None or id in fresh:
                    continue
                moved = moved or self._index.is_directory(id)  # what lies below it has other paths as well
                if (path := self._known.pop(id, None)) is not None:
                    self._before[id] = path
        for _, due in changes.dead:
            self._generations.release(due.generation)
        if moved and self._known:
            self._known.update(self._before)
            self._before, self._known = self._known, {}

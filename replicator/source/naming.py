"""Names and deaths that the replica has not been told yet, and what each of them waits for.

Takes slots and dead inodes with their dues; gives those that may go into the next epoch. A slot waits for the content
of what it names; a dead inode waits for the slots that it was in, since what fills them must not come later. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from itertools import islice
from typing import TypeVar

from replicator.dirty.generations import Generations
from replicator.model import FileId, Slot
from replicator.tree.resolver import Due

_Key = TypeVar("_Key", Slot, FileId)


class Naming:
    """Slots and deaths to tell. What a slot means is looked up when it is told, not when it is queued."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations
        self._slots: dict[Slot, Due] = {}
        self._leaving: dict[FileId, set[Slot]] = {}
        """By who was in them."""
        self._emptied: dict[FileId, set[Slot]] = {}
        """By their directory, those that somebody was in."""
        self._free: dict[Slot, None] = {}
        """Queued slots that are not known to wait for anything."""
        self._waiting: dict[FileId, set[Slot]] = {}
        self._dead: dict[FileId, Due] = {}
        self.deferred: dict[FileId, None] = {}
        """The dead that are not to be told for now."""

    def queue(self, slot: Slot, due: Due) -> None:
        """Tell what the slot means."""
        self._merge(self._slots, slot, due)
        self._free[slot] = None
        before = self._slots[slot].before
        if before is not None:
            self._leaving.setdefault(before, set()).add(slot)
            self._emptied.setdefault(slot.parent, set()).add(slot)

    def queue_dead(self, id: FileId, due: Due) -> None:
        """Give the inode up."""
        self._merge(self._dead, id, due)

    def is_dying(self, id: FileId) -> bool:
        """Whether its death is still to be told."""
        return id in self._dead

    def defer(self, id: FileId) -> None:
        """Do not tell its death until `resume`."""
        self.deferred[id] = None

    def resume(self, id: FileId) -> None:
        """Its death may be told."""
        self.deferred.pop(id, None)

    def release(self, id: FileId) -> None:
        """What waits for this inode's content may be asked about again."""
        for slot in self._waiting.pop(id, ()):
            self._free[slot] = None

    def take(self, blocker: Callable[[Slot, Due], FileId | None], most: int) -> dict[Slot, Due]:
        """Up to `most` slots that wait for nothing: `blocker` names the inode that one has to wait for."""
        taken: dict[Slot, Due] = {}
        free, self._free = list(self._free), {}
        for at, slot in enumerate(free):
            if len(taken) >= most:
                self._free.update(dict.fromkeys(free[at:]))
                break
            due = self._slots.get(slot)
            if due is None:
                continue
            awaited = blocker(slot, due)
            if awaited is not None:
                self._waiting.setdefault(awaited, set()).add(slot)
                continue
            taken[slot] = due
            del self._slots[slot]
            if due.before is not None:
                for by, key in ((self._leaving, due.before), (self._emptied, slot.parent)):
                    by[key].discard(slot)
                    if not by[key]:
                        del by[key]
        return taken

    def left(self, directory: FileId) -> list[FileId]:
        """Who was in slots of a directory that are still to be told."""
        befores = (self._slots[slot].before for slot in self._emptied.get(directory, ()))
        return [before for before in befores if before is not None]

    def leaving(self, id: FileId) -> set[Slot]:
        """The slots that it was in and that are still to be told."""
        return self._leaving.get(id, set())

    def take_dead(self, most: int, held: Container[FileId]) -> dict[FileId, Due]:
        """Up to `most` dead inodes, but for those `held`, whose places have been told."""
        ready = (id for id in self._dead if id not in self._leaving and id not in self.deferred and id not in held)
        ids = list(islice(ready, most))
        return {id: self._dead.pop(id) for id in ids}

    def slots(self) -> Iterator[Slot]:
        """Those that are to be told."""
        yield from self._slots

    def dead(self) -> Iterator[FileId]:
        """Those whose deaths are to be told."""
        yield from self._dead

    def dues(self) -> Iterator[Due]:
        """Of everything that is queued."""
        yield from self._slots.values()
        yield from self._dead.values()

    def _merge(self, queue: dict[_Key, Due], key: _Key, due: Due) -> None:
        known = queue.get(key)
        if known is None:
            queue[key] = due
            return
        known.generation = self._generations.merge(known.generation, due.generation)
        known.since = min(known.since, due.since)
        known.before, due.before = known.before or due.before, None
        known.looked = max(known.looked, due.looked)

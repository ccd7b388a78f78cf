"""What a store is still to be told of names.

Takes what it was told, and what it is told later, in order. A death takes the names of the inode and those in it, and a
directory that is given a name loses the one it had (see IndexStore.commit): so more is decided than the slots that are
told of. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from replicator.model import FileId, Kind, Slot
from replicator.tree.store import Told


class Undecided:
    """Slots that may not stay as they are in the store."""

    def __init__(self, later: Iterable[Told]) -> None:
        self._slots: set[Slot] = set()
        self._dead: set[FileId] = set()
        self._moved: set[FileId] = set()
        for one in later:
            self._slots.update(one.slots)
            self._dead.update(one.dead)
            self._moved.update(entry[0] for entry in one.slots.values() if entry and entry[1] is Kind.DIRECTORY)

    def has(self, slot: Slot, holder: FileId | None) -> bool:
        """Whether what is told later may change what the slot holds, which is `holder` before that."""
        return slot in self._slots or slot.parent in self._dead or holder in self._dead or holder in self._moved


def reborn(told: Sequence[Told], later: Iterable[Told]) -> set[FileId]:
    """Who is told dead and, after that or `later`, in a slot again, or has one in it."""
    deaths = {id: number for number, one in enumerate(told) for id in one.dead}
    found: set[FileId] = set()
    for number, one in enumerate((*told, *later) if deaths else ()):
        for slot, entry in one.slots.items():
            for id in (slot.parent, entry[0] if entry is not None else None):
                if id in deaths and number > deaths[id]:
                    found.add(id)
    return found

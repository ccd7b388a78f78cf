"""What it does to the names in a store to be told something: also to names that it is not told of.

A death takes the names of the inode and those in it, and a directory that is given a name loses the one it had (see
IndexStore.commit). Takes what is told, in order; gives the slots of which it decides, without looking. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from replicator.model import FileId, Kind, Slot
from replicator.tree.store import Told


def effect(told: Sequence[Told]) -> dict[Slot, FileId | None]:
    """What the slots that are told of hold afterwards."""
    holders: dict[Slot, FileId | None] = {}
    buried = {id for one in told for id in one.dead}
    about: dict[FileId, list[Slot]] = {}  # where directories and the buried are, and what is in the buried
    for one in told:
        for slot, entry in one.slots.items():
            if buried and slot.parent in buried:
                about.setdefault(slot.parent, []).append(slot)
            if entry is None:
                holders[slot] = None
                continue
            id, kind = entry
            if kind is Kind.DIRECTORY:
                holders.update((old, None) for old in about.get(id, ()) if holders.get(old) == id)
            if kind is Kind.DIRECTORY or id in buried:
                about.setdefault(id, []).append(slot)
            holders[slot] = id
        for id in one.dead:
            holders.update((old, None) for old in about.get(id, ()) if old.parent == id or holders[old] == id)
    return holders


class Unheard:
    """What a store is still to be told."""

    def __init__(self, told: Iterable[Told] = ()) -> None:
        self._slots: set[Slot] = set()
        self._moved: set[FileId] = set()
        self._named: set[FileId] = set()
        for one in told:
            self._moved.update(one.dead)
            for slot, entry in one.slots.items():
                self._slots.add(slot)
                self._named.add(slot.parent)
                if entry is not None:
                    self._named.add(entry[0])
                    if entry[1] is Kind.DIRECTORY:
                        self._moved.add(entry[0])

    def decides(self, slot: Slot, holder: FileId | None) -> bool:
        """Whether it may change what the slot holds, which is `holder` now."""
        return slot in self._slots or slot.parent in self._moved or holder in self._moved

    def names(self, id: FileId) -> bool:
        """Whether it gives the inode a name, or has one in it."""
        return id in self._named

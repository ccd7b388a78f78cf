"""Taking over what the replica has already: `check` facts against entries on disk that no inode of the source owns.

Takes facts; changes only the inventory. A directory under the same name is always the same directory, a file is taken
for equal with the same size and modification time, a link or device with the same target or number. A large file that
is not equal, or is in doubt, is taken over to be compared block by block. One replica inode is never given to two ids,
and nothing is adopted that a fact did not ask to compare.
"""

from __future__ import annotations

import os

from replicator.blocks import COMPARED_FROM
from replicator.mirror import attributes
from replicator.mirror.ground import AstrayError, Ground, open_beneath
from replicator.mirror.inventory import Inventory
from replicator.mirror.records import doubted
from replicator.mirror.steps import Record
from replicator.model import Facts, FileId, InodeFact, Kind, Slot

_ALWAYS = b"lost+found"


def adopt(facts: Facts, ground: Ground, inventory: Inventory) -> None:
    """Enter into the inventory what can be adopted. Parents may be adopted by the same facts, in any order."""
    slots: dict[FileId, list[Slot]] = {}
    for fact in facts.slots:
        if fact.id is not None:
            slots.setdefault(fact.id, []).append(fact.slot)
    waiting = [
        fact
        for fact in facts.inodes
        if fact.id in slots and inventory.record(fact.id) is None and (fact.check or _is_lost_and_found(fact, slots))
    ]
    while waiting:
        left = [fact for fact in waiting if not _adopt_one(fact, slots[fact.id], ground, inventory)]
        if len(left) == len(waiting):
            return
        waiting = left


def _is_lost_and_found(fact: InodeFact, slots: dict[FileId, list[Slot]]) -> bool:
    return fact.kind is Kind.DIRECTORY and any(slot.name == _ALWAYS for slot in slots[fact.id])


def _adopt_one(fact: InodeFact, slots: list[Slot], ground: Ground, inventory: Inventory) -> bool:
    """Whether it is known now."""
    adopted: bytes | None = None
    for slot in slots:
        if inventory.record(slot.parent) is None or inventory.bound(slot) is not None:
            continue
        try:
            handle = ground.at(slot)
            if handle is None:
                continue
            if adopted is None:
                record = None if inventory.by_handle(handle) is not None else _record(fact, slot, ground)
                if record is None:
                    continue
                inventory.put(fact.id, record, handle)
                adopted = handle
        except (OSError, AstrayError):
            continue
        if handle == adopted:
            inventory.bind(slot, fact.id)
    return adopted is not None


def _record(fact: InodeFact, slot: Slot, ground: Ground) -> Record | None:
    """What is known of the inode in this slot if it is taken for that of the fact; None if it is not."""
    fd = open_beneath(ground.directory(slot.parent), slot.name, os.O_PATH)
    try:
        kind, size, have = attributes.read_attributes(fd)
    finally:
        os.close(fd)
    wanted = fact.attributes
    if kind is not fact.kind:
        return None
    if kind is not Kind.FILE:
        same = have.target == wanted.target and have.rdev == wanted.rdev
    else:
        same = not fact.deep and size == fact.size and have.mtime_ns == wanted.mtime_ns
    if same:
        return Record(kind, fact.size, wanted.mtime_ns, wanted.ctime_ns)
    if kind is Kind.FILE and min(size, fact.size) >= COMPARED_FROM:
        return doubted(Record(kind, size))
    return None

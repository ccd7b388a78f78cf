"""Batches of the kernel's records, merged into the dirty table.

Takes arrays of EVENT in ring order, of any inodes; marks what the members of the tree owe. Records of inodes without a
name in the tree are dropped: an inode is owed whole when it gets its first name there. The order of records does not
matter, since ranges unite and sizes take the minimum. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from replicator.capture.event import EventFlag, EventKind, Events
from replicator.dirty.outsiders import MappedOutsiders
from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import DirtyTable, Owed
from replicator.model import END_OF_FILE, FileId

FEW = 64
"""Up to so many records are merged one by one: numpy's calls cost more than that."""

# Plain numbers: comparing with an enumeration's members costs more than all the rest.
_WRITE, _FOLIO, _SIZE, _TAIL, _WHOLE = (
    int(kind) for kind in (EventKind.WRITE, EventKind.FOLIO, EventKind.SIZE, EventKind.TAIL, EventKind.WHOLE)
)
_ATTR = int(EventKind.ATTR)
_MAPPED, _HOLES, _BEFORE = (int(flag) for flag in (EventFlag.MAPPED, EventFlag.HOLES, EventFlag.BEFORE))


def merge(records: Events, table: DirtyTable, is_member: Callable[[FileId], bool], outsiders: MappedOutsiders) -> int:
    """Mark what `records` say; returns how many of them belong to members. `outsiders` notes the others' mappings."""
    if len(records) <= FEW:
        return sum(_merge_one(record, table, is_member, outsiders) for record in records.tolist())
    order = np.lexsort((records["gen"], records["ino"], records["root"], records["fs"]))
    batch = records[order]
    edges = np.flatnonzero(
        (batch["ino"][1:] != batch["ino"][:-1])
        | (batch["gen"][1:] != batch["gen"][:-1])
        | (batch["root"][1:] != batch["root"][:-1])
        | (batch["fs"][1:] != batch["fs"][:-1])
    )
    bounds = [0, *(edges + 1).tolist(), len(batch)]
    taken = 0
    for first, last in pairwise(bounds):
        head: Any = batch[first]
        id = FileId(int(head["fs"]), int(head["root"]), int(head["ino"]), int(head["gen"]))
        group = batch[first:last]
        if not is_member(id):
            if np.any((group["flags"] & EventFlag.MAPPED != 0) | (group["kind"] == EventKind.FOLIO)):
                outsiders.note(id)
            continue
        taken += last - first
        _mark(table.mark(id, int(group["ts"].min()), complete=True), group)
    return taken


def _merge_one(
    record: tuple[int, ...], table: DirtyTable, is_member: Callable[[FileId], bool], outsiders: MappedOutsiders
) -> bool:
    ts, ino, start, length, root, _, gen, _, kind, fs, flags, _ = record
    id = FileId(fs, root, ino, gen)
    if not is_member(id):
        if flags & _MAPPED or kind == _FOLIO:
            outsiders.note(id)
        return False
    owed = table.mark(id, ts, complete=True)
    owed.mapped |= bool(flags & _MAPPED) or kind == _FOLIO
    owed.holes |= bool(flags & _HOLES) or kind == _TAIL
    if kind == _WRITE and not flags & _BEFORE:
        owed.written = max(owed.written, ts)
    elif kind == _SIZE:
        owed.sized = max(owed.sized, ts)
    elif kind == _ATTR:
        owed.changed = max(owed.changed, ts)
    else:
        owed.begun = max(owed.begun, ts)
    start = min(start, END_OF_FILE)
    end = min(start + length, END_OF_FILE)
    if kind == _WRITE:
        owed.ranges.add(start, end)
    elif kind == _FOLIO:
        owed.folios.add(start, end)
    elif kind == _SIZE:
        owed.lower(start)
    elif kind == _TAIL:
        owed.ranges.add(start, END_OF_FILE)
    elif kind == _WHOLE:
        owed.mark_whole()
    return True


def _mark(owed: Owed, group: Events) -> None:
    flags = int(np.bitwise_or.reduce(group["flags"]))
    owed.mapped |= bool(flags & EventFlag.MAPPED)
    owed.holes |= bool(flags & EventFlag.HOLES)
    kinds = group["kind"]
    complete = (kinds == EventKind.WRITE) & (group["flags"] & EventFlag.BEFORE == 0)
    owed.written = max(owed.written, int(group["ts"][complete].max(initial=0)))
    sizes, attributes = kinds == _SIZE, kinds == _ATTR
    owed.sized = max(owed.sized, int(group["ts"][sizes].max(initial=0)))
    owed.changed = max(owed.changed, int(group["ts"][attributes].max(initial=0)))
    owed.begun = max(owed.begun, int(group["ts"][~(complete | sizes | attributes)].max(initial=0)))
    present = set(np.unique(kinds).tolist())
    if EventKind.WHOLE in present:
        owed.mark_whole()
    if EventKind.WRITE in present:
        _add(owed.ranges, group[kinds == EventKind.WRITE])
    if EventKind.FOLIO in present:
        _add(owed.folios, group[kinds == EventKind.FOLIO])
        owed.mapped = True
    if EventKind.SIZE in present:
        owed.lower(min(int(group["off"][kinds == EventKind.SIZE].min()), END_OF_FILE))
    if EventKind.TAIL in present:
        owed.ranges.add(min(int(group["off"][kinds == EventKind.TAIL].min()), END_OF_FILE), END_OF_FILE)
        owed.holes = True


def _add(ranges: RangeSet, group: Events) -> None:
    """Unite with the records' ranges: sorted and merged by numpy, so that few remain to be added one by one."""
    starts = np.minimum(group["off"], END_OF_FILE)
    ends = starts + np.minimum(group["len"], END_OF_FILE - starts)
    if len(group) > 1:
        order = np.argsort(starts, kind="stable")
        starts = starts[order]
        ends = np.maximum.accumulate(ends[order])
        begins = np.concatenate(([True], starts[1:] > ends[:-1]))
        lasts = np.concatenate((begins[1:], [True]))
        starts, ends = starts[begins], ends[lasts]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        ranges.add(start, end)

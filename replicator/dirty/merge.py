"""Batches of the kernel's records, merged into the dirty table.

Takes arrays of EVENT in ring order, of any inodes; marks what the members of the tree owe. Records of inodes without a
name in the tree are dropped: an inode is owed whole when it gets its first name there. The order of records does not
matter, since ranges unite and sizes take the minimum. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from replicator.capture.epochs import LOW, full
from replicator.capture.event import EventFlag, EventKind, Events
from replicator.capture.groups import INODE, WRITER, edges, group
from replicator.dirty.outsiders import MappedOutsiders
from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import DirtyTable, Owed
from replicator.dirty.writers import Writers
from replicator.model import END_OF_FILE, FileId

FEW = 64
"""Up to so many records are merged one by one: numpy's calls cost more than that."""
SMALL = 8
"""The same for the records of one inode, when the batch is taken apart already."""

# Plain numbers: comparing with an enumeration's members costs more than all the rest.
_WRITE, _FOLIO, _SIZE, _TAIL, _WHOLE = (
    int(kind) for kind in (EventKind.WRITE, EventKind.FOLIO, EventKind.SIZE, EventKind.TAIL, EventKind.WHOLE)
)
_ATTR = int(EventKind.ATTR)
_SIZED = (_WRITE, _FOLIO)
_MAPPED, _HOLES, _BEFORE = (int(flag) for flag in (EventFlag.MAPPED, EventFlag.HOLES, EventFlag.BEFORE))


def merge(
    records: Events,
    table: DirtyTable,
    is_member: Callable[[FileId], bool],
    outsiders: MappedOutsiders,
    writers: Writers,
) -> int:
    """Mark what `records`, at least one, say; returns how many of them belong to members.

    `outsiders` notes the others' mappings, `writers` all that changed something, also the others'.
    """
    if len(records) <= FEW:
        return merge_few(records.tolist(), table, is_member, outsiders, writers)
    if np.any(records["epoch"]):
        table.repeats = True
    writers.begin(int(records["ts"][-1]))
    # An inode's records, and within them those of each writer, lie in one piece.
    groups = group(records, WRITER + INODE)
    batch = records[groups.order]
    pieces = groups.bounds[:-1]
    heads = batch[pieces]
    written = np.add.reduceat(_written(batch), pieces).tolist()
    who = heads[list(WRITER)].tolist()
    begins = edges([heads[name] for name in INODE])
    bounds = groups.bounds.tolist()
    taken = 0
    for inode, (first, last) in zip(heads[list(INODE)][begins[:-1]].tolist(), pairwise(begins.tolist()), strict=True):
        members = batch[bounds[first] : bounds[last]]
        if len(members) <= SMALL:
            taken += sum(_merge_one(record, table, is_member, outsiders, writers) for record in members.tolist())
            continue
        id = FileId(*inode)
        if is_member(id):
            taken += len(members)
            owed = table.mark(id, int(members["ts"].min()), complete=True)
            _mark(owed, members, table.fence)
            share = owed.share
        else:
            if np.any((members["flags"] & EventFlag.MAPPED != 0) | (members["kind"] == EventKind.FOLIO)):
                outsiders.note(id)
            share = writers.stranger(id)
        for piece in range(first, last):
            share.add(writers.of(*who[piece]), written[piece])
    return taken


def merge_few(
    records: list[tuple[int, ...]],
    table: DirtyTable,
    is_member: Callable[[FileId], bool],
    outsiders: MappedOutsiders,
    writers: Writers,
) -> int:
    """The same for records as tuples."""
    writers.begin(records[-1][0])
    taken = 0
    for record in records:
        if record[-1]:
            table.repeats = True
        taken += _merge_one(record, table, is_member, outsiders, writers)
    return taken


def _written(records: Events) -> npt.NDArray[np.int64]:
    """How many bytes each record says were written, 0 where that is not known."""
    lengths = records["len"]
    known = np.isin(records["kind"], _SIZED) & (lengths < END_OF_FILE)
    return np.where(known, lengths, 0).astype(np.int64)


def _merge_one(
    record: tuple[int, ...],
    table: DirtyTable,
    is_member: Callable[[FileId], bool],
    outsiders: MappedOutsiders,
    writers: Writers,
) -> bool:
    ts, ino, start, length, root, cgroup, gen, pid, kind, fs, flags, epoch = record
    id = FileId(fs, root, ino, gen)
    writer = writers.of(pid, cgroup)
    written = length if kind in _SIZED and length < END_OF_FILE else 0
    if not is_member(id):
        if flags & _MAPPED or kind == _FOLIO:
            outsiders.note(id)
        writers.stranger(id).add(writer, written)
        return False
    owed = table.mark(id, ts, complete=True)
    owed.share.add(writer, written)
    owed.epoch = max(owed.epoch, full(epoch, table.fence))
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


def _mark(owed: Owed, group: Events, fence: int) -> None:
    flags = int(np.bitwise_or.reduce(group["flags"]))
    owed.mapped |= bool(flags & EventFlag.MAPPED)
    owed.holes |= bool(flags & EventFlag.HOLES)
    epochs = group["epoch"][group["epoch"] != 0]
    if len(epochs):
        ages = ((fence & LOW) - epochs.astype(np.int64)) & LOW
        owed.epoch = max(owed.epoch, fence - int(ages.min()))
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

"""Batches of the kernel's records, merged into the dirty table.

Takes arrays of EVENT in ring order, of any inodes; marks what the members of the tree owe. Records of inodes without a
name in the tree are dropped: an inode is owed whole when it gets its first name there. The order of records does not
matter, since ranges unite and sizes take the minimum. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from replicator.capture.epochs import LOW, full
from replicator.capture.event import TO_THE_END, EventFlag, EventKind, Events
from replicator.capture.groups import INODE, WRITER, Numbers, group
from replicator.dirty.outsiders import MappedOutsiders
from replicator.dirty.ranges import RangeSet, cover
from replicator.dirty.table import DirtyTable, Owed
from replicator.dirty.writers import Share, Writers
from replicator.model import END_OF_FILE, FileId

FEW = 64
"""Up to so many records are merged one by one: numpy's calls cost more than that."""

# Plain numbers: comparing with an enumeration's members costs more than all the rest.
_WRITE, _FOLIO, _SIZE, _TAIL, _WHOLE = (
    int(kind) for kind in (EventKind.WRITE, EventKind.FOLIO, EventKind.SIZE, EventKind.TAIL, EventKind.WHOLE)
)
_ATTR = int(EventKind.ATTR)
_SIZED = (_WRITE, _FOLIO)
_MAPPED, _HOLES, _BEFORE = (int(flag) for flag in (EventFlag.MAPPED, EventFlag.HOLES, EventFlag.BEFORE))

_Values = npt.NDArray[np.integer[Any]]
_Chosen = npt.NDArray[np.bool_]


class _Batch:
    """Many records, inode by inode. What is asked of each inode comes in that order.

    Records stay where they are: numpy moves single columns much faster.
    """

    def __init__(self, records: Events, order: Numbers, bounds: Numbers) -> None:
        """`order` and `bounds` as in `Groups`."""
        self._records, self._order = records, order
        self._firsts, self._sizes = bounds[:-1], np.diff(bounds)

    def __len__(self) -> int:
        return len(self._order)

    def column(self, name: str) -> _Values:
        """A field of all records."""
        values = np.ascontiguousarray(self._records[name])
        return values if len(self._sizes) == 1 and len(values) == len(self._order) else values[self._order]

    def ids(self) -> list[FileId]:
        """The inodes."""
        heads = self._records[self._order[self._firsts]]
        return list(map(FileId._make, zip(*(heads[name].tolist() for name in INODE), strict=True)))

    def numbers(self) -> Numbers:
        """Which inode each record is of."""
        return np.repeat(np.arange(len(self._sizes)), self._sizes)

    def inodes_of(self, places: Numbers) -> Numbers:
        """The inodes' numbers of records at some places in the ring's order."""
        numbers = np.empty(len(self._records), np.intp)
        numbers[self._order] = self.numbers()
        return numbers[places]

    def only(self, inodes: Sequence[bool]) -> _Batch:
        """Without the records of some."""
        sizes = self._sizes[np.array(inodes)]
        return _Batch(
            self._records, self._order[np.repeat(inodes, self._sizes)], np.concatenate(([0], np.cumsum(sizes)))
        )

    def least(self, values: _Values) -> list[int]:
        """The smallest of one value for each record."""
        found: list[int] = np.minimum.reduceat(values, self._firsts).tolist()
        return found

    def greatest(self, values: _Values) -> list[int]:
        """The greatest."""
        found: list[int] = np.maximum.reduceat(values, self._firsts).tolist()
        return found

    def total(self, values: _Values) -> list[int]:
        """The sum."""
        found: list[int] = np.add.reduceat(values, self._firsts).tolist()
        return found

    def any(self, chosen: _Chosen) -> list[bool]:
        """Whether one of some records is there."""
        found: list[bool] = np.logical_or.reduceat(chosen, self._firsts).tolist()
        return found


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
    batch = _Batch(records, *group(records, INODE))
    ids = batch.ids()
    members = list(map(is_member, ids))
    owes: list[Owed] = []
    shares: list[Share] = []
    for id, member, since in zip(ids, members, batch.least(batch.column("ts")), strict=True):
        if member:
            owed = table.mark(id, since, complete=True)
            owes.append(owed)
            shares.append(owed.share)
        else:
            shares.append(writers.stranger(id))
    _share(shares, records, batch, writers)
    if len(owes) < len(ids):
        mapped = (batch.column("flags") & _MAPPED != 0) | (batch.column("kind") == _FOLIO)
        for id, member, noted in zip(ids, members, batch.any(mapped), strict=True):
            if noted and not member:
                outsiders.note(id)
        batch = batch.only(members)
    if owes:
        _mark(owes, batch, table.fence)
    return len(batch)


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


def _share(shares: Sequence[Share], records: Events, batch: _Batch, writers: Writers) -> None:
    """Who wrote how many bytes."""
    pid, cgroup = records["pid"], records["cgroup"]
    if not np.any(pid != pid[0]) and not np.any(cgroup != cgroup[0]):
        writer = writers.of(int(pid[0]), int(cgroup[0]))
        for share, amount in zip(shares, batch.total(_written(batch.column("kind"), batch.column("len"))), strict=True):
            share.add(writer, amount)
        return
    pieces = group(records, INODE + WRITER)
    heads = pieces.heads
    amounts = np.add.reduceat(_written(records["kind"], records["len"])[pieces.order], pieces.bounds[:-1])
    told = (batch.inodes_of(heads), pid[heads], cgroup[heads], amounts)
    for inode, one, where, amount in zip(*(values.tolist() for values in told), strict=True):
        shares[inode].add(writers.of(one, where), amount)


def _written(kinds: _Values, lengths: _Values) -> npt.NDArray[np.int64]:
    """How many bytes each record says were written, 0 where that is not known."""
    known = (kinds <= _FOLIO) & (lengths < END_OF_FILE)
    return (lengths if known.all() else np.where(known, lengths, 0)).astype(np.int64)


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


def _mark(owes: Sequence[Owed], batch: _Batch, fence: int) -> None:
    """Mark all that the records say in the entries of their inodes, but for `since` and who it was."""
    kinds, flags, epochs, times = (batch.column(name) for name in ("kind", "flags", "epoch", "ts"))
    are = {kind: kinds == kind for kind in np.flatnonzero(np.bincount(kinds)).tolist()}
    none = np.zeros(len(kinds), np.bool_)
    wrote, folios, tails = are.get(_WRITE, none), are.get(_FOLIO, none), are.get(_TAIL, none)
    sized, changed = are.get(_SIZE, none), are.get(_ATTR, none)
    complete = wrote & (flags & _BEFORE == 0)
    for name, chosen in (
        ("written", complete),
        ("sized", sized),
        ("changed", changed),
        ("begun", ~(complete | sized | changed)),
    ):
        if chosen.any():
            for owed, newest in zip(owes, batch.greatest(times * chosen), strict=True):
                if newest > getattr(owed, name):
                    setattr(owed, name, newest)
    for name, chosen in ("mapped", (flags & _MAPPED != 0) | folios), ("holes", (flags & _HOLES != 0) | tails):
        for owed in _those(owes, batch, chosen):
            setattr(owed, name, True)
    if epochs.any():
        ages = np.where(epochs != 0, (fence - epochs.astype(np.int64)) & LOW, LOW + 1)
        for owed, age in zip(owes, batch.least(ages), strict=True):
            if age <= LOW:
                owed.epoch = max(owed.epoch, fence - age)
    for owed in _those(owes, batch, are.get(_WHOLE, none)):
        owed.mark_whole()
    if wrote.any():
        _cover([owed.ranges for owed in owes], batch, wrote)
    if folios.any():
        _cover([owed.folios for owed in owes], batch, folios)
    for owed, size in _lowest(owes, batch, sized):
        owed.lower(size)
    for owed, start in _lowest(owes, batch, tails):
        owed.ranges.add(start, END_OF_FILE)


def _those(owes: Sequence[Owed], batch: _Batch, chosen: _Chosen) -> Iterator[Owed]:
    """The entries that one of some records is of."""
    if chosen.any():
        yield from (owed for owed, one in zip(owes, batch.any(chosen), strict=True) if one)


def _lowest(owes: Sequence[Owed], batch: _Batch, chosen: _Chosen) -> Iterator[tuple[Owed, int]]:
    """The same, each with the lowest offset of those records."""
    if chosen.any():
        offsets = np.where(chosen, np.minimum(batch.column("off"), END_OF_FILE), TO_THE_END)
        yield from ((owed, one) for owed, one in zip(owes, batch.least(offsets), strict=True) if one != TO_THE_END)


def _cover(sets: Sequence[RangeSet], batch: _Batch, chosen: _Chosen) -> None:
    """Add the ranges of some records to their inodes' sets."""
    numbers, starts, lengths = batch.numbers(), batch.column("off"), batch.column("len")
    if not chosen.all():
        numbers, starts, lengths = numbers[chosen], starts[chosen], lengths[chosen]
    starts = np.minimum(starts, END_OF_FILE)
    ends = starts + np.minimum(lengths, END_OF_FILE - starts)
    cover(sets, numbers, starts.view(np.int64), ends.view(np.int64))

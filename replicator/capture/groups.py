"""Records put into groups by some of their fields: who belongs together in a batch.

Takes an array of `EVENT`; gives an order in which each group lies in one piece, or each record's group. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from replicator.capture.event import Events

INODE = ("fs", "root", "ino", "gen")
"""The fields that tell which inode a record is of."""
WRITER = ("pid", "cgroup")

_ODD: Final = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio, which spreads numbers that lie close together."""

Numbers = npt.NDArray[np.intp]
Columns = Sequence[npt.NDArray[np.integer[Any]]]


class Groups(NamedTuple):
    """At least one record in at least one group."""

    order: Numbers
    """The records' places, group by group, within a group in ring order."""
    bounds: Numbers
    """Where each group begins in `order`, and at last where the last one ends."""

    @property
    def heads(self) -> Numbers:
        """The place of each group's first record."""
        return self.order[self.bounds[:-1]]

    def numbers(self) -> Numbers:
        """The number of each record's group."""
        numbers = np.empty(len(self.order), np.intp)
        numbers[self.order] = self.sorted_numbers()
        return numbers

    def sorted_numbers(self) -> Numbers:
        """The same in `order`: 0 for each record of the first group, and so on."""
        return np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))


def group(records: Events, fields: Sequence[str]) -> Groups:
    """Group records, at least one, that are equal in all `fields`."""
    # Most batches are of one filesystem, many of one process: what is the same everywhere need not be sorted by.
    columns = [column for column in (records[name] for name in fields) if np.any(column != column[0])]
    if not columns:
        return Groups(np.arange(len(records)), np.array([0, len(records)]))
    return _hashed(columns) or _sorted(columns)


def _hashed(columns: Columns) -> Groups | None:
    """By one number for all columns, with the place below it, so that plain numbers are sorted: that is much faster.

    None if two groups have the same number, by rare chance.
    """
    count = len(columns[0])
    mask = np.uint64((1 << (count - 1).bit_length()) - 1)
    keys = np.zeros(count, np.uint64)
    for column in columns:
        keys ^= column
        keys *= _ODD
        keys ^= keys >> np.uint64(29)
    keys &= ~mask
    keys |= np.arange(count, dtype=np.uint64)
    keys.sort()
    order = (keys & mask).view(np.int64)
    keys &= ~mask
    same = keys[1:] == keys[:-1]
    for column in columns:
        ordered = column[order]
        if np.any((ordered[1:] != ordered[:-1]) & same):
            return None
    return Groups(order, np.concatenate(([0], np.flatnonzero(~same) + 1, [count])))


def _sorted(columns: Columns) -> Groups:
    order = np.lexsort(columns)
    return Groups(order, edges([column[order] for column in columns]))


def edges(columns: Columns) -> Numbers:
    """Where rows begin that differ from the one before in some column; at last how many rows there are."""
    changes = reduce(np.logical_or, (column[1:] != column[:-1] for column in columns))
    return np.concatenate(([0], np.flatnonzero(changes) + 1, [len(columns[0])]))

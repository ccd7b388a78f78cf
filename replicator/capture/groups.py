"""Records put into groups by some of their fields: who belongs together in a batch.

Takes an array of `EVENT`; gives an order in which each group lies in one piece, or each record's group. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replicator.capture.event import Events

INODE = ("fs", "root", "ino", "gen")
"""The fields that tell which inode a record is of."""
WRITER = ("pid", "cgroup")

Numbers = npt.NDArray[np.intp]


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
        numbers[self.order] = np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))
        return numbers


def group(records: Events, fields: Sequence[str]) -> Groups:
    """Group records, at least one, that are equal in all `fields`."""
    # Most batches are of one filesystem, many of one process: what is the same everywhere need not be sorted by.
    columns = [column for column in (records[name] for name in fields) if np.any(column != column[0])]
    if not columns:
        return Groups(np.arange(len(records)), np.array([0, len(records)]))
    order = np.lexsort(columns)
    return Groups(order, edges([column[order] for column in columns]))


def edges(columns: Sequence[npt.NDArray[np.integer[Any]]]) -> Numbers:
    """Where rows begin that differ from the one before in some column; at last how many rows there are."""
    changes = reduce(np.logical_or, (column[1:] != column[:-1] for column in columns))
    return np.concatenate(([0], np.flatnonzero(changes) + 1, [len(columns[0])]))

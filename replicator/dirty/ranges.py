"""A merged, bounded set of byte ranges.

Takes half-open ranges in any order, one at a time or very many for many sets at once; gives them back sorted, disjoint
and not touching. When there would be more than `limit` of them, the smallest gaps are closed, so the set may cover more
than it was given, never less. Pure.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from replicator.model import END_OF_FILE, Extent

DEFAULT_LIMIT = 4096

Offsets = npt.NDArray[np.int64]

_EMPTY: Final = array("q")
"""Of every set without ranges: never changed in place."""


class RangeSet:
    """Sorted disjoint ranges [start, end) of one file, in bytes."""

    __slots__ = ("_ends", "_limit", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = (), limit: int = DEFAULT_LIMIT) -> None:
        """`ranges` are pairs (start, end); `limit` is the number of ranges above which gaps are closed."""
        # Arrays, not lists: numpy has them at no cost, and they take a fifth of the memory.
        self._starts = self._ends = _EMPTY
        self._limit = limit
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Cover [start, end). An empty range changes nothing."""
        if end <= start:
            return
        starts, ends = self._starts, self._ends
        if not starts:
            self._starts, self._ends = array("q", (start,)), array("q", (end,))
            return
        if start > ends[-1]:  # appending is the common case
            starts.append(start)
            ends.append(end)
        else:
            first = bisect_left(ends, start)
            last = bisect_right(starts, end)
            if first < last:
                if starts[first] <= start and end <= ends[first]:
                    return
                start = min(start, starts[first])
                end = max(end, ends[last - 1])
            starts[first:last] = array("q", (start,))
            ends[first:last] = array("q", (end,))
        if len(starts) > self._limit:
            # Until three quarters are left, so that it is not done at every add.
            self._keep(_numbers(starts), _numbers(ends), max(1, self._limit * 3 // 4))

    def update(self, other: RangeSet) -> None:
        """Cover all of `other` too."""
        for start, end in other:
            self.add(start, end)

    def remove(self, start: int, end: int) -> list[tuple[int, int]]:
        """Cover nothing of [start, end) any more; returns what of it was covered."""
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if end <= start or first >= last:
            return []
        removed = [
            (max(start, a), min(end, b)) for a, b in zip(self._starts[first:last], self._ends[first:last], strict=True)
        ]
        left, right = self._starts[first], self._ends[last - 1]
        keep = [(a, b) for a, b in ((left, min(start, right)), (max(end, left), right)) if a < b]
        self._starts[first:last] = array("q", [a for a, _ in keep])
        self._ends[first:last] = array("q", [b for _, b in keep])
        return removed

    def within(self, end: int) -> RangeSet:
        """A copy of what lies below `end`."""
        result = RangeSet(limit=self._limit)
        count = bisect_left(self._starts, end)
        result._starts = self._starts[:count]
        result._ends = self._ends[:count]
        if count and result._ends[-1] > end:
            result._ends[-1] = end
        return result

    def copy(self) -> RangeSet:
        """An equal set that changes by itself."""
        return self.within(END_OF_FILE + 1)

    def split(self, budget: int) -> tuple[RangeSet, RangeSet]:
        """The first `budget` bytes that are covered, and the rest."""
        head, tail = RangeSet(limit=self._limit), RangeSet(limit=self._limit)
        for start, end in self:
            cut = min(end, start + budget)
            head.add(start, cut)
            tail.add(cut, end)
            budget -= cut - start
        return head, tail

    def covers(self, start: int, end: int) -> bool:
        """Whether all of [start, end) is covered."""
        at = bisect_right(self._starts, start) - 1
        return end <= start or (at >= 0 and self._ends[at] >= end)

    def extents(self) -> tuple[Extent, ...]:
        """The ranges as (offset, length)."""
        return tuple(Extent(start, end - start) for start, end in self)

    @property
    def total(self) -> int:
        """How many bytes are covered."""
        return sum(self._ends) - sum(self._starts)

    @property
    def end(self) -> int:
        """The end of the last range; 0 when there is none."""
        return self._ends[-1] if self._ends else 0

    def _keep(self, starts: Offsets, ends: Offsets, most: int) -> None:
        """Have just these, with the smallest gaps closed until there are at most so many ranges."""
        if len(starts) > most:
            cuts = len(starts) - most
            kept = np.sort(np.argpartition(starts[1:] - ends[:-1], cuts - 1)[cuts:])
            starts, ends = np.append(starts[:1], starts[kept + 1]), np.append(ends[kept], ends[-1:])
        self._starts, self._ends = array("q", starts.tobytes()), array("q", ends.tobytes())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    def __len__(self) -> int:
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RangeSet({list(self)!r})"


def cover(sets: Sequence[RangeSet], owners: npt.NDArray[np.intp], starts: Offsets, ends: Offsets) -> None:
    """Add ranges in any order, each to the set whose index it has in `owners`."""
    filled = ends > starts
    if not filled.all():
        owners, starts, ends = owners[filled], starts[filled], ends[filled]
    if not len(owners):
        return
    grown = [True] if len(sets) == 1 else (np.bincount(owners, minlength=len(sets)) > 0).tolist()
    there = [len(one._starts) if more else 0 for one, more in zip(sets, grown, strict=True)]
    old = [one for one, count in zip(sets, there, strict=True) if count]
    old_starts = np.frombuffer(b"".join(one._starts for one in old), np.int64)
    old_ends = np.frombuffer(b"".join(one._ends for one in old), np.int64)
    if len(sets) == 1:
        starts, ends = _united(_joined(old_starts, starts), _joined(old_ends, ends))
        sets[0]._keep(starts, ends, sets[0]._limit)
        return
    # As if all files lay in a row: then plain numbers are sorted.
    room = END_OF_FILE // len(sets)
    if max(int(ends.max()), int(old_ends.max(initial=0))) >= room:
        _cover_far(sets, owners, starts, ends, room)
        return
    limits = np.arange(len(sets) + 1) * room
    shifts, old_shifts = limits[owners], np.repeat(limits[:-1], there)
    starts, ends = _united(
        _joined(old_starts + old_shifts, starts + shifts), _joined(old_ends + old_shifts, ends + shifts)
    )
    bounds = np.searchsorted(starts, limits)
    shifts = np.repeat(limits[:-1], np.diff(bounds))
    starts, ends = starts - shifts, ends - shifts
    raw_starts, raw_ends, places = starts.tobytes(), ends.tobytes(), (bounds * starts.itemsize).tolist()
    for one, more, first, last in zip(sets, grown, places, places[1:], strict=False):
        if more:
            one._starts, one._ends = array("q", raw_starts[first:last]), array("q", raw_ends[first:last])
            if len(one._starts) > one._limit:
                one._keep(_numbers(one._starts), _numbers(one._ends), one._limit)


def _cover_far(
    sets: Sequence[RangeSet], owners: npt.NDArray[np.intp], starts: Offsets, ends: Offsets, room: int
) -> None:
    """The same; what goes beyond `room`, or to a set that does, has no place in the row and is added one by one."""
    far = np.array([one.end >= room for one in sets])
    far[owners[ends >= room]] = True
    apart = far[owners]
    for owner, start, end in zip(owners[apart].tolist(), starts[apart].tolist(), ends[apart].tolist(), strict=True):
        sets[owner].add(start, end)
    cover(sets, owners[~apart], starts[~apart], ends[~apart])


def _joined(old: Offsets, new: Offsets) -> Offsets:
    """Sorted numbers and others, all sorted."""
    if not (new[1:] >= new[:-1]).all():
        new = np.sort(new)
    if not len(old):
        return new
    joined = np.concatenate((old, new))
    if old[-1] > new[0]:
        joined.sort(kind="stable")  # which takes two sorted halves for what they are
    return joined


def _united(starts: Offsets, ends: Offsets) -> tuple[Offsets, Offsets]:
    """The union of at least one range, as sorted, disjoint ranges that do not touch.

    Both are sorted: which end belongs to which start does not matter, since a gap is where as many ranges have ended as
    have begun.
    """
    apart = starts[1:] > ends[:-1]
    if not apart.any():
        return starts[:1], ends[-1:]
    return starts[np.concatenate(([True], apart))], ends[np.concatenate((apart, [True]))]


def _numbers(values: array[int]) -> Offsets:
    return np.frombuffer(values, np.int64)

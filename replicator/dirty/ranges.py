"""A merged, bounded set of byte ranges.

Takes half-open ranges in any order, gives them back sorted, disjoint and not touching. When there would be more than
`limit` of them, the smallest gaps are closed, so the set may cover more than it was given, never less. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from replicator.model import END_OF_FILE, Extent

DEFAULT_LIMIT = 4096


class RangeSet:
    """Sorted disjoint ranges [start, end) of one file, in bytes."""

    __slots__ = ("_ends", "_limit", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = (), limit: int = DEFAULT_LIMIT) -> None:
        """`ranges` are pairs (start, end); `limit` is the number of ranges above which gaps are closed."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._limit = limit
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Cover [start, end). An empty range changes nothing."""
        if end <= start:
            return
        starts, ends = self._starts, self._ends
        if not starts or start > ends[-1]:  # appending is the common case
            starts.append(start)
            ends.append(end)
        else:
            first = bisect_left(ends, start)
            last = bisect_right(starts, end)
            if first < last:
                start = min(start, starts[first])
                end = max(end, ends[last - 1])
            starts[first:last] = [start]
            ends[first:last] = [end]
        if len(starts) > self._limit:
            self._widen()

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
        self._starts[first:last] = [a for a, _ in keep]
        self._ends[first:last] = [b for _, b in keep]
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

    def _widen(self) -> None:
        """Close the smallest gaps until three quarters of the limit are left, so that it is not done at every add."""
        keep = max(1, self._limit * 3 // 4)
        gaps = sorted(range(len(self._starts) - 1), key=lambda i: self._starts[i + 1] - self._ends[i], reverse=True)
        cuts = sorted(gaps[: keep - 1])
        self._ends = [self._ends[i] for i in cuts] + [self._ends[-1]]
        self._starts = [self._starts[0]] + [self._starts[i + 1] for i in cuts]

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

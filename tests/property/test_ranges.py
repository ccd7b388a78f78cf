"""RangeSet against a set of bytes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from replicator.dirty.ranges import RangeSet, cover
from replicator.model import END_OF_FILE

SIZE = 60
SPANS = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE))
ACTIONS = st.lists(st.tuples(st.sampled_from(["add", "remove"]), SPANS), max_size=40)


def naive(actions: list[tuple[str, tuple[int, int]]]) -> set[int]:
    covered: set[int] = set()
    for action, (start, end) in actions:
        (covered.update if action == "add" else covered.difference_update)(range(start, end))
    return covered


def built(actions: list[tuple[str, tuple[int, int]]], limit: int = 4096) -> RangeSet:
    ranges = RangeSet(limit=limit)
    for action, span in actions:
        (ranges.add if action == "add" else ranges.remove)(*span)
    return ranges


def covered(ranges: RangeSet) -> set[int]:
    return {at for start, end in ranges for at in range(start, end)}


@given(ACTIONS)
def test_covers_exactly_what_was_added_and_not_removed(actions: list[tuple[str, tuple[int, int]]]) -> None:
    assert covered(built(actions)) == naive(actions)


@given(ACTIONS)
def test_stays_sorted_disjoint_and_not_touching(actions: list[tuple[str, tuple[int, int]]]) -> None:
    spans = list(built(actions))
    assert all(start < end for start, end in spans)
    assert all(before[1] < after[0] for before, after in pairwise(spans))


@given(st.lists(SPANS, max_size=40), st.integers(1, 6))
def test_bounded_sets_cover_more_never_less(spans: list[tuple[int, int]], limit: int) -> None:
    ranges = RangeSet(spans, limit=limit)
    assert len(ranges) <= limit
    exact = naive([("add", span) for span in spans])
    assert covered(ranges) >= exact
    if exact:  # and never beyond the outermost bytes
        assert min(covered(ranges)) == min(exact)
        assert max(covered(ranges)) == max(exact)


@given(ACTIONS, SPANS)
def test_remove_says_what_it_took(actions: list[tuple[str, tuple[int, int]]], span: tuple[int, int]) -> None:
    ranges = built(actions)
    before = covered(ranges)
    taken = {at for start, end in ranges.remove(*span) for at in range(start, end)}
    assert taken == before & set(range(*span))
    assert covered(ranges) == before - set(range(*span))


@given(ACTIONS, st.integers(0, SIZE))
def test_within_cuts_at_the_end(actions: list[tuple[str, tuple[int, int]]], end: int) -> None:
    ranges = built(actions)
    assert covered(ranges.within(end)) == {at for at in covered(ranges) if at < end}
    assert covered(ranges.copy()) == covered(ranges)


@given(ACTIONS, st.integers(0, SIZE))
def test_split_gives_the_first_bytes_and_the_rest(actions: list[tuple[str, tuple[int, int]]], budget: int) -> None:
    ranges = built(actions)
    head, tail = ranges.split(budget)
    everything = sorted(covered(ranges))
    assert sorted(covered(head)) == everything[:budget]
    assert sorted(covered(tail)) == everything[budget:]


@given(ACTIONS, SPANS)
def test_covers_and_total(actions: list[tuple[str, tuple[int, int]]], span: tuple[int, int]) -> None:
    ranges = built(actions)
    assert ranges.covers(*span) == (set(range(*span)) <= covered(ranges))
    assert ranges.total == len(covered(ranges))
    assert sum(extent.length for extent in ranges.extents()) == ranges.total


CLOSE = st.tuples(st.integers(0, 30), st.integers(0, 3)).map(lambda span: (span[0], sum(span)))
"""Short ranges, of which some touch."""
MANY = st.lists(st.tuples(st.integers(0, 3), CLOSE), max_size=20)
FAR = st.sampled_from([0, END_OF_FILE - SIZE])


@given(MANY, MANY, st.lists(FAR, min_size=4, max_size=4), st.integers(1, 4))
def test_many_ranges_for_many_sets_are_each_range_for_its_set(
    before: list[tuple[int, tuple[int, int]]],
    added: list[tuple[int, tuple[int, int]]],
    moved: list[int],
    count: int,
) -> None:
    single, together = [RangeSet() for _ in range(count)], [RangeSet() for _ in range(count)]
    old, new = (
        [(at % count, start + moved[at], end + moved[at]) for at, (start, end) in part] for part in (before, added)
    )
    for at, start, end in old:
        single[at].add(start, end)
        together[at].add(start, end)
    for at, start, end in new:
        single[at].add(start, end)
    owners, starts, ends = np.array(new, np.int64).reshape(-1, 3).T
    cover(together, owners, starts, ends)
    assert together == single
    for ranges in together:
        ranges.add(END_OF_FILE - 1, END_OF_FILE)  # a set that cannot be changed any more would raise


@given(st.lists(st.tuples(st.integers(0, 1), CLOSE), min_size=10, max_size=40), st.integers(1, 6), st.integers(1, 2))
def test_many_ranges_at_once_close_the_smallest_gaps_and_no_more(
    added: list[tuple[int, tuple[int, int]]], limit: int, count: int
) -> None:
    sets, exact = [RangeSet(limit=limit) for _ in range(count)], [RangeSet() for _ in range(count)]
    for at, span in added:
        exact[at % count].add(*span)
    owners, starts, ends = np.array([(at % count, *span) for at, span in added], np.int64).reshape(-1, 3).T
    cover(sets, owners, starts, ends)
    for ranges, all_of_it in zip(sets, exact, strict=True):
        gaps = sorted(after[0] - before[1] for before, after in pairwise(all_of_it))
        assert len(ranges) == min(limit, len(all_of_it))
        assert covered(ranges) >= covered(all_of_it)
        assert ranges.total == all_of_it.total + sum(gaps[: len(all_of_it) - len(ranges)])

"""RangeSet against a set of bytes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from replicator.dirty.ranges import RangeSet

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

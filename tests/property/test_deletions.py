"""The limit of deletions against a model that knows no shortcuts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicator.source.deletions import Deletions

BATCH = 100

asks = st.tuples(st.just("ask"), st.integers(0, 9), st.integers(1, 8))
spares = st.tuples(st.just("spare"), st.integers(0, 9), st.just(0))
settles = st.tuples(st.just("settle"), st.just(0), st.just(0))
waits = st.tuples(st.just("wait"), st.just(0), st.integers(0, 150))


@given(st.integers(0, 20), st.lists(asks | spares | settles | waits, max_size=60))
def test_never_more_within_a_batch_and_nothing_passes_what_is_held(
    limit: int, steps: list[tuple[str, int, int]]
) -> None:
    deletions: Deletions[int] = Deletions(limit, BATCH)
    settled = 0
    now, allowed, held = 0, list[tuple[int, int]](), dict[int, int]()
    for what, group, amount in steps:
        if what == "wait":
            now += amount
        elif what == "spare":
            deletions.shrink(group, 0)
            held.pop(group, None)
        elif what == "settle":
            few = bool(held) and sum(held.values()) <= limit
            assert deletions.settle(now) == few
            settled += few
            if few:
                allowed.append((now, sum(held.values())))
                held.clear()
        else:
            recent = sum(names for at, names in allowed if at > now - BATCH)
            fits = not held and recent + amount <= limit
            assert deletions.ask(group, amount, now) == fits
            if fits:
                allowed.append((now, amount))
            else:
                held[group] = amount
        assert deletions.holding == sum(held.values())
        assert [group in deletions for group in range(10)] == [group in held for group in range(10)]
        assert list(deletions) == list(held)
    for end, _ in allowed:  # what came back in part is a batch of its own
        assert sum(names for at, names in allowed if end - BATCH < at <= end) <= (1 + settled) * limit


@given(st.lists(st.integers(1, 10**9), max_size=30))
def test_without_a_limit_everything_goes(groups: list[int]) -> None:
    deletions: Deletions[int] = Deletions(None)
    assert all(deletions.ask(number, names, 0) for number, names in enumerate(groups))
    assert deletions.holding == 0

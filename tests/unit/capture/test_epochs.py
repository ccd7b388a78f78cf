"""Epochs in full from the half that records carry."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from replicator.capture.epochs import LOW, full

present = st.one_of(st.integers(1, 10), st.integers(LOW - 5, LOW + 5), st.integers(1, 2**63))


@given(present, st.integers(0, LOW - 1))
@example(LOW + 1, 1)
@example(3 * (LOW + 1), 3)
def test_an_epoch_is_known_by_its_low_half_until_two_to_the_32nd_have_passed(present: int, age: int) -> None:
    epoch = present - age
    if epoch > 0 and epoch & LOW:
        assert full(epoch & LOW, present) == epoch


@given(present, st.integers(1, LOW))
def test_no_epoch_is_taken_for_an_older_one_than_it_is(present: int, low: int) -> None:
    """One that is older than that passes for a newer one: its inode is owed once more than it need be."""
    assert present - LOW <= full(low, present) <= present
    assert full(low, present) & LOW == low


@given(present)
def test_none_stays_none(present: int) -> None:
    assert full(0, present) == 0

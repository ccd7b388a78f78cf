"""When a replica may be synced again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.syncing import CREDIT, following


def test_after_a_rest_the_next_sync_follows_at_once() -> None:
    assert following(0.0, 1000.0, 0.05) <= 1000.0


@given(st.floats(0.001, 1.0), st.integers(20, 60))
def test_a_disk_that_is_always_wanted_is_synced_half_of_the_time(seconds: float, times: int) -> None:
    begun = now = due = 1000.0
    for _ in range(times):
        now = max(now, due) + seconds
        due = following(due, now, seconds)
    assert max(now, due) - begun == pytest.approx(2 * times * seconds, abs=CREDIT + 2 * seconds)


@given(st.floats(0.0, 1000.0), st.floats(1.0, 600.0))
def test_a_slow_sync_is_followed_by_a_pause(rest: float, seconds: float) -> None:
    began = 1000.0 + rest
    ended = began + seconds
    assert ended + 1.0 - CREDIT <= following(1000.0, ended, seconds) <= ended + 1.0

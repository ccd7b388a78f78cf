"""Waiting between attempts."""

from __future__ import annotations

import pytest

from replicator.link.backoff import Backoff


def test_waits_double_up_to_the_cap() -> None:
    backoff = Backoff(first=0.1, cap=5.0, chance=lambda: 1.0)
    assert [backoff.next() for _ in range(8)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert backoff.attempts == 8


def test_chance_takes_up_to_half_away() -> None:
    backoff = Backoff(first=1.0, cap=5.0, chance=lambda: 0.0)
    assert [backoff.next() for _ in range(4)] == pytest.approx([0.5, 1.0, 2.0, 2.5])


def test_success_begins_anew() -> None:
    backoff = Backoff(chance=lambda: 1.0)
    first = backoff.next()
    for _ in range(10_000):
        assert backoff.next() <= 5.0
    backoff.reset()
    assert backoff.attempts == 0
    assert backoff.next() == first

"""A clock that is set is noticed, one that is adjusted is not."""

from __future__ import annotations

import pytest

from replicator.source.clock import NOTICED, WallClock

HOUR, REST = 3600 * 10**9, 50_000_000


class Hands:
    wall = 10**18
    steady = 0

    def go(self, ns: int) -> None:
        self.wall += ns
        self.steady += ns


@pytest.mark.parametrize("jump", [5 * HOUR, -5 * HOUR, 2 * NOTICED])
def test_after_it_was_set_it_is_uneven_for_a_while(jump: int) -> None:
    hands = Hands()
    clock = WallClock(lambda: hands.wall, lambda: hands.steady, REST)
    hands.go(10**9)
    assert clock() == hands.wall
    assert clock.even
    hands.wall += jump
    for _ in range(5):
        assert clock() == hands.wall
        assert not clock.even
        hands.go(REST // 5)
    hands.go(1)
    clock()
    assert clock.even


@pytest.mark.parametrize("preempted", range(12))
def test_a_pause_between_two_readings_is_not_setting(preempted: int) -> None:
    hands, readings = Hands(), iter(range(1000))

    def read(name: str) -> int:
        if next(readings) == preempted:
            hands.go(4 * NOTICED)
        return int(getattr(hands, name))

    clock = WallClock(lambda: read("wall"), lambda: read("steady"), REST)
    for _ in range(4):
        clock()
        assert clock.even


def test_slow_adjustment_is_not_setting() -> None:
    hands = Hands()
    clock = WallClock(lambda: hands.wall, lambda: hands.steady, REST)
    for _ in range(1000):
        hands.go(10**9)
        hands.wall += NOTICED // 10
        clock()
        assert clock.even

"""When a waiter is let through."""

from __future__ import annotations

from replicator.barrier import Barriers
from replicator.dirty.generations import Generations


class World:
    def __init__(self) -> None:
        self.generations = Generations()
        self.barriers = Barriers(self.generations)
        self.passed: list[str] = []

    def wait(self, name: str, position: int = 100, turn: int = 1, *, early: bool = False) -> None:
        self.barriers.add(position, turn, lambda: self.passed.append(name), early=early)

    def turn(self, consumed: int, turn: int, *, scanned: bool = True, in_sync: bool = True) -> None:
        self.barriers.turn(consumed, turn, scanned=scanned, in_sync=in_sync)


def test_both_channels_are_drained_before_the_generation_closes() -> None:
    world = World()
    assert not world.barriers.closing
    world.wait("w", position=100, turn=1)
    assert world.barriers.closing, "another turn is due at once, whether anything happens or not"
    world.turn(consumed=50, turn=2)
    assert world.generations.current == 1
    world.turn(consumed=100, turn=1)
    assert world.generations.current == 1, "the names' queue is drained in the turn after the question at the earliest"
    world.turn(consumed=100, turn=2)
    assert world.passed == ["w"]


def test_what_was_owed_before_holds_it_up_and_what_comes_later_does_not() -> None:
    world = World()
    token = world.generations.hold()
    world.wait("w")
    world.turn(consumed=100, turn=2)
    assert world.passed == []
    assert not world.barriers.closing, "only what is owed is waited for"
    world.generations.hold()
    world.generations.release(token)
    world.turn(consumed=100, turn=3)
    assert world.passed == ["w"]


def test_nobody_passes_before_the_first_sync_but_who_makes_it() -> None:
    world = World()
    world.wait("early", early=True)
    world.wait("user")
    world.turn(consumed=100, turn=2, scanned=False, in_sync=False)
    assert world.passed == []
    world.turn(consumed=100, turn=3, scanned=True, in_sync=False)
    assert world.passed == ["early"]
    world.turn(consumed=100, turn=4)
    assert world.passed == ["early", "user"]


def test_waiters_of_one_turn_share_a_generation() -> None:
    world = World()
    world.wait("a")
    world.wait("b")
    world.turn(consumed=100, turn=2)
    assert world.generations.current == 2
    assert world.passed == ["a", "b"]
    assert not world.barriers

"""Tokens of generations: what a barrier waits for."""

from __future__ import annotations

import pytest

from replicator.dirty.generations import Generations


def test_a_barrier_waits_for_older_tokens_only() -> None:
    generations = Generations()
    first = generations.hold()
    closed = generations.close()
    later = generations.hold()
    assert later > closed
    assert not generations.settled(closed)
    generations.release(first)
    assert generations.settled(closed)
    assert not generations.settled(later)


def test_a_writer_that_never_pauses_does_not_starve_a_barrier() -> None:
    generations = Generations()
    token = generations.hold()
    closed = generations.close()
    generations.release(token)
    for _ in range(100):
        generations.hold()
        assert generations.settled(closed)


def test_merging_keeps_the_older_generation() -> None:
    generations = Generations()
    old = generations.hold()
    closed = generations.close()
    new = generations.hold()
    assert generations.merge(new, old) == old
    assert generations.owed == 1
    assert not generations.settled(closed)


def test_what_follows_from_an_old_change_belongs_to_its_generation() -> None:
    generations = Generations()
    closed = generations.close()
    generations.hold(closed)
    assert not generations.settled(closed)


def test_giving_back_twice_is_a_fault() -> None:
    generations = Generations()
    token = generations.hold()
    generations.release(token)
    with pytest.raises(KeyError):
        generations.release(token)

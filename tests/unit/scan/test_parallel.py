"""Iterators side by side."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from replicator.scan.parallel import THREADS, WAITING, side_by_side


def numbers(first: int, count: int) -> Generator[int, None, None]:
    yield from range(first, first + count)


def test_everything_comes_once() -> None:
    parts = [numbers(1000 * part, 100) for part in range(3 * THREADS)]
    assert sorted(side_by_side(parts)) == [1000 * part + number for part in range(3 * THREADS) for number in range(100)]
    assert list(side_by_side([])) == []


def test_they_run_at_the_same_time() -> None:
    meeting = threading.Barrier(THREADS, timeout=10)

    def part() -> Generator[int, None, None]:
        yield meeting.wait()

    assert sorted(side_by_side([part() for _ in range(THREADS)])) == list(range(THREADS))


def test_what_one_raises_is_raised_and_the_others_end() -> None:
    ended = []

    def part() -> Generator[int, None, None]:
        try:
            yield from range(10**9)
        finally:
            ended.append(True)

    def failing() -> Generator[int, None, None]:
        yield 1
        raise OSError("it broke")

    with pytest.raises(OSError, match="it broke"):
        for _ in side_by_side([part(), failing(), part()]):
            pass
    assert ended == [True, True]


def test_a_reader_that_stops_ends_them() -> None:
    ended = []

    def part() -> Generator[int, None, None]:
        try:
            yield from range(10**9)
        finally:
            ended.append(True)

    reader = side_by_side([part() for _ in range(2 * THREADS)])
    for _ in range(3 * WAITING):
        next(reader)
    reader.close()
    assert len(ended) <= THREADS
    assert not [thread for thread in threading.enumerate() if thread.name == "scan"]

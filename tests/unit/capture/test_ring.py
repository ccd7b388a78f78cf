"""The ring reader, on pages made by hand."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.capture.event import EVENT, Events
from replicator.capture.ring import BUSY, DISCARD, STRIDE, RingError, RingView

SIZE = 4096


class Kernel:
    """The writers' side: one page of data, mapped twice, as the kernel's ring is."""

    def __init__(self, start: int = 0) -> None:
        self.consumer = np.array([start], np.uint64)
        self.producer = np.array([start], np.uint64)
        self.data = np.zeros(2 * SIZE, np.uint8)
        self.view = RingView(self.consumer, self.producer, self.data)
        self.number = 0

    def room(self) -> bool:
        return int(self.producer[0]) - int(self.consumer[0]) + STRIDE <= SIZE

    def put(self, flags: int = 0, length: int = EVENT.itemsize) -> int:
        """Reserve a record with the next number as its inode; returns its position."""
        assert self.room()
        position = int(self.producer[0])
        record = np.zeros(1, EVENT)
        record["ino"] = self.number
        record["ts"] = self.number * 10
        self.number += 1
        self._store(position, struct.pack("<II", length | flags, 7) + record.tobytes())
        self.producer[0] = position + STRIDE
        return position

    def submit(self, position: int, flags: int = 0) -> None:
        self._store(position, struct.pack("<I", EVENT.itemsize | flags))

    def _store(self, position: int, content: bytes) -> None:
        for index, byte in enumerate(content):
            at = (position + index) % SIZE
            self.data[at] = self.data[at + SIZE] = byte


def numbers(events: Events | None) -> list[int]:
    return [] if events is None else events["ino"].tolist()


def test_an_empty_ring_gives_nothing() -> None:
    kernel = Kernel()
    assert kernel.view.drain(100) is None
    assert kernel.view.produced() == kernel.view.consumed() == 0


def test_records_come_in_order_and_only_once() -> None:
    kernel = Kernel()
    for _ in range(5):
        kernel.put()
    assert numbers(kernel.view.drain(3)) == [0, 1, 2]
    assert numbers(kernel.view.drain(100)) == [3, 4]
    assert kernel.view.drain(100) is None
    assert kernel.view.consumed() == kernel.view.produced() == 5 * STRIDE


def test_space_is_given_back_only_by_advance() -> None:
    kernel = Kernel()
    kernel.put()
    kernel.view.drain(1)
    assert int(kernel.consumer[0]) == 0
    kernel.view.advance()
    assert int(kernel.consumer[0]) == STRIDE


def test_what_was_drained_is_a_copy() -> None:
    kernel = Kernel()
    kernel.put()
    events = kernel.view.drain(1)
    kernel.data[:] = 0xFF
    assert events is not None
    assert events["ts"].tolist() == [0]
    assert numbers(events) == [0]


def test_a_busy_record_stops_the_reader_until_it_is_submitted() -> None:
    kernel = Kernel()
    kernel.put()
    busy = kernel.put(BUSY)
    kernel.put()
    assert numbers(kernel.view.drain(100)) == [0]
    assert kernel.view.drain(100) is None
    assert kernel.view.consumed() == STRIDE < kernel.view.produced()
    kernel.submit(busy)
    assert numbers(kernel.view.drain(100)) == [1, 2]


def test_discarded_records_are_passed_over() -> None:
    kernel = Kernel()
    kernel.put(DISCARD)
    kernel.put()
    kernel.put(DISCARD)
    kernel.put(DISCARD)
    kernel.put()
    assert numbers(kernel.view.drain(100)) == [1, 4]


def test_nothing_but_discarded_records_is_not_taken_for_an_empty_ring() -> None:
    kernel = Kernel()
    for _ in range(3):
        kernel.put(DISCARD)
    kernel.put()
    assert numbers(kernel.view.drain(2)) == [3]


def test_a_record_that_wraps_is_read_in_one_piece() -> None:
    kernel = Kernel(start=SIZE - STRIDE - STRIDE // 2 - 4)
    for _ in range(4):
        kernel.put()
    events = kernel.view.drain(100)
    assert numbers(events) == [0, 1, 2, 3]
    assert events is not None
    assert events["ts"].tolist() == [0, 10, 20, 30]


def test_a_record_of_another_size_is_an_error() -> None:
    kernel = Kernel()
    kernel.put(length=48)
    with pytest.raises(RingError):
        kernel.view.drain(1)


def test_a_size_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        RingView(np.zeros(1, np.uint64), np.zeros(1, np.uint64), np.zeros(2 * 3000, np.uint8))


@given(
    start=st.integers(0, 2**40).map(lambda number: number * 8),
    moves=st.lists(st.sampled_from(["put", "busy", "discard", "submit", "drop", "drain", "advance"]), max_size=300),
)
def test_every_submitted_record_is_seen_exactly_once(start: int, moves: list[str]) -> None:
    kernel = Kernel(start)
    wanted: list[int] = []
    got: list[int] = []
    busy: list[tuple[int, int]] = []
    for move in moves:
        if move in ("put", "busy", "discard") and kernel.room():
            number = kernel.number
            position = kernel.put({"put": 0, "busy": BUSY, "discard": DISCARD}[move])
            if move == "busy":
                busy.append((position, number))
            if move != "discard":
                wanted.append(number)
        elif move in ("submit", "drop") and busy:
            position, number = busy.pop()
            kernel.submit(position, 0 if move == "submit" else DISCARD)
            if move == "drop":
                wanted.remove(number)
        elif move == "drain":
            got += numbers(kernel.view.drain(7))
        elif move == "advance":
            kernel.view.advance()
    for position, _ in busy:
        kernel.submit(position)
    while (events := kernel.view.drain(7)) is not None:
        got += numbers(events)
    assert got == wanted
    assert kernel.view.consumed() == kernel.view.produced()

"""The ring reader, on pages made by hand."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.capture.event import EVENT, LONG_NAME, SHORT_NAME, EventKind, Events
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

    def put_name(self, name: bytes, flags: int = 0, filler: int = 0) -> int:
        """A record with a name behind it; `filler` is what the rest of its room holds, byte by byte."""
        room = SHORT_NAME if len(name) < SHORT_NAME else LONG_NAME
        position = int(self.producer[0])
        assert position - int(self.consumer[0]) + STRIDE + room <= SIZE
        record = np.zeros(1, EVENT)
        record["ino"], record["kind"], record["len"] = self.number, int(EventKind.NAME), len(name) << 32
        self.number += 1
        body = record.tobytes() + (name + b"\0").ljust(room, bytes([filler]))[:room]
        self._store(position, struct.pack("<II", EVENT.itemsize + room | flags, 7) + body)
        self.producer[0] = position + STRIDE + room
        return position

    def submit(self, position: int, flags: int = 0) -> None:
        self._store(position, struct.pack("<I", EVENT.itemsize | flags))

    def _store(self, position: int, content: bytes) -> None:
        for index, byte in enumerate(content):
            at = (position + index) % SIZE
            self.data[at] = self.data[at + SIZE] = byte


def numbers(events: Events | None) -> list[int]:
    return [] if events is None else events["ino"].tolist()


def one_by_one(view: RingView, most: int) -> list[int]:
    """What `few` gives, which is the same as tuples and as bytes."""
    found = view.few(most)
    if found is None:
        return []
    records, raw = found
    assert 0 < len(records) <= most
    assert view.names == []
    assert np.frombuffer(raw, EVENT).tolist() == records
    return numbers(np.frombuffer(raw, EVENT))


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
    moves=st.lists(
        st.sampled_from(["put", "busy", "discard", "submit", "drop", "drain", "few", "advance"]), max_size=300
    ),
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
        elif move == "few":
            got += one_by_one(kernel.view, 7)
        elif move == "advance":
            kernel.view.advance()
    for position, _ in busy:
        kernel.submit(position)
    while (events := kernel.view.drain(7)) is not None:
        got += numbers(events)
    assert got == wanted
    assert kernel.view.consumed() == kernel.view.produced()


def test_a_few_records_are_given_one_by_one_and_more_are_not() -> None:
    kernel = Kernel()
    assert one_by_one(kernel.view, 3) == []
    for _ in range(3):
        kernel.put()
    assert one_by_one(kernel.view, 2) == []
    assert one_by_one(kernel.view, 3) == [0, 1, 2]
    assert kernel.view.drain(3) is None
    kernel.view.advance()
    kernel.put(BUSY)
    assert one_by_one(kernel.view, 3) == []
    assert kernel.view.consumed() == 3 * STRIDE


def test_names_come_with_their_records() -> None:
    kernel = Kernel()
    kernel.put()
    kernel.put_name(b"short")
    kernel.put()
    kernel.put_name(b"n" * 255)
    kernel.put_name(b"")
    assert numbers(kernel.view.drain(100)) == [0, 1, 2, 3, 4]
    assert kernel.view.names == [b"short", b"n" * 255, b""]
    assert kernel.view.consumed() == kernel.view.produced()
    assert kernel.view.drain(100) is None
    assert kernel.view.names == []


@pytest.mark.parametrize("filler", [0, EVENT.itemsize, 0x80, 0xFF])
def test_what_lies_in_a_records_room_is_never_taken_for_a_record(filler: int) -> None:
    """Old bytes of the lap before can look like a length, busy or not."""
    kernel = Kernel()
    for _ in range(5):
        kernel.put_name(b"x" * 100, filler=filler)
        kernel.put_name(b"y", filler=filler)
        kernel.put()
        assert len(numbers(kernel.view.drain(100))) == 3
        assert kernel.view.names == [b"x" * 100, b"y"]
        kernel.view.advance()


def test_a_busy_record_with_a_name_holds_up_what_follows() -> None:
    kernel = Kernel()
    kernel.put()
    position = kernel.put_name(b"late", flags=BUSY, filler=0xFF)
    kernel.put()
    assert numbers(kernel.view.drain(100)) == [0]
    assert kernel.view.drain(100) is None
    kernel._store(position, struct.pack("<I", EVENT.itemsize + SHORT_NAME))
    assert numbers(kernel.view.drain(100)) == [1, 2]
    assert kernel.view.names == [b"late"]


def test_a_record_longer_than_the_limit_comes_whole() -> None:
    kernel = Kernel()
    kernel.put_name(b"n" * 200)
    kernel.put()
    assert numbers(kernel.view.drain(1)) == [0]
    assert kernel.view.names == [b"n" * 200]
    assert numbers(kernel.view.drain(1)) == [1]


def test_a_discarded_name_is_passed_over() -> None:
    kernel = Kernel()
    kernel.put_name(b"gone", flags=DISCARD)
    kernel.put_name(b"there")
    assert numbers(kernel.view.drain(100)) == [1]
    assert kernel.view.names == [b"there"]


@given(
    st.integers(0, 3 * SIZE // 8).map(lambda words: 8 * words),
    st.lists(st.one_of(st.none(), st.binary(max_size=255).filter(lambda name: 0 not in name)), max_size=60),
    st.integers(1, 7),
)
def test_any_sequence_with_names_is_read_as_it_was_written(start: int, records: list[bytes | None], limit: int) -> None:
    kernel = Kernel(start)
    found: list[int] = []
    names: list[bytes] = []
    for record in records:
        if int(kernel.producer[0]) - int(kernel.consumer[0]) + STRIDE + LONG_NAME > SIZE:
            found += one_by_one(kernel.view, limit)
            while (events := kernel.view.drain(limit)) is not None:
                found += numbers(events)
                names += kernel.view.names
            kernel.view.advance()
        if record is None:
            kernel.put()
        else:
            kernel.put_name(record, filler=len(record))
    while (events := kernel.view.drain(limit)) is not None:
        found += numbers(events)
        names += kernel.view.names
    assert found == list(range(len(records)))
    assert names == [record for record in records if record is not None]


def test_a_sound_ring_is_checked_and_nothing_is_taken() -> None:
    kernel = Kernel(start=5 * STRIDE)
    kernel.put()
    kernel.put_name(b"name")
    kernel.put(DISCARD)
    kernel.put()
    busy = kernel.put(BUSY)
    kernel.view.check()
    assert kernel.view.consumed() == 5 * STRIDE
    events = kernel.view.drain(100)
    assert events is not None
    assert events["ino"].tolist() == [0, 1, 3]
    assert kernel.view.names == [b"name"]
    kernel.submit(busy)
    kernel.view.check()


@pytest.mark.parametrize("position", [STRIDE, 3 * STRIDE + 4])
def test_a_reader_where_it_cannot_be_is_noticed(position: int) -> None:
    kernel = Kernel()
    kernel.consumer[0] = position
    view = RingView(kernel.consumer, kernel.producer, kernel.data)
    with pytest.raises(RingError):
        view.check()


def test_a_writer_that_is_too_far_ahead_is_noticed() -> None:
    kernel = Kernel()
    kernel.producer[0] = SIZE + STRIDE
    with pytest.raises(RingError):
        kernel.view.check()


def test_a_record_that_nobody_writes_is_noticed() -> None:
    kernel = Kernel()
    kernel.put()
    kernel.put(length=40)
    with pytest.raises(RingError):
        kernel.view.check()
    assert kernel.view.consumed() == 0

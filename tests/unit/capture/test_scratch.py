"""Memory for events: what a process that was killed had read, and had not done, is in it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.capture.scratch import BLANK, LARGEST_EVENT, Scratch, whole

SIZE = 3 * LARGEST_EVENT


def event(body: bytes) -> bytes:
    """As fanotify's begin: with their length."""
    body = body.ljust(20, b"\0")
    body += b"\0" * (-len(body) % 4)
    return struct.pack("=I", 4 + len(body)) + body


events = st.lists(st.binary(max_size=300).map(event), max_size=12)


class Queue:
    """A pipe in the place of fanotify's queue."""

    def __init__(self) -> None:
        self.out, self._in = os.pipe2(os.O_NONBLOCK)

    def put(self, *events: bytes) -> None:
        os.write(self._in, b"".join(events))

    def close(self) -> None:
        os.close(self.out)
        os.close(self._in)


@pytest.fixture
def queue() -> Iterator[Queue]:
    made = Queue()
    yield made
    made.close()


def successor(scratch: Scratch) -> Scratch:
    """What the next process makes of it."""
    return Scratch(os.dup(scratch.descriptor))


ONE, TWO, THREE = (event(word) for word in (b"one", b"two", b"three"))


def test_what_is_not_done_is_told_to_the_next_process(queue: Queue) -> None:
    first = Scratch.make(SIZE)
    assert not first.left
    queue.put(ONE)
    assert first.read(queue.out) == ONE
    queue.put(TWO)
    assert first.read(queue.out) == TWO
    assert first.read(queue.out) == b""
    for _ in range(2):  # each that dies before it is done leaves it to the next
        second = successor(first)
        assert second.left
        assert second.recovered() == (ONE + TWO, False)
        assert not second.left
        second.close()
    second = successor(first)
    second.recovered()
    queue.put(THREE)
    assert second.read(queue.out) == THREE
    second.clear()
    third = successor(first)
    assert not third.left
    for one in (first, second, third):
        one.close()


class Killed(BaseException):
    """The process ended there."""


def test_a_read_whose_length_was_never_told_is_told_to_the_next_process(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Scratch.make(SIZE)
    queue.put(ONE)
    first.read(queue.out)
    queue.put(TWO, THREE)
    readv = os.readv

    def dying(fd: int, buffers: Sequence[memoryview]) -> int:
        readv(fd, buffers)
        raise Killed

    monkeypatch.setattr(os, "readv", dying)
    with pytest.raises(Killed):
        first.read(queue.out)
    second = successor(first)
    assert second.recovered() == (ONE + TWO + THREE, False)
    second.clear()
    # Nothing of it may come up again, should the next read be cut short as well.
    queue.put(ONE)
    with pytest.raises(Killed):
        second.read(queue.out)
    third = successor(first)
    assert third.recovered() == (ONE, False)
    for one in (first, second, third):
        one.close()


def test_what_was_cut_does_not_come_up_again(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Scratch.make(SIZE)
    readv = os.readv

    def dying(fd: int, buffers: Sequence[memoryview]) -> int:
        readv(fd, buffers)
        raise Killed

    monkeypatch.setattr(os, "readv", dying)
    queue.put(ONE, struct.pack("=I", 500), b"x" * 100)
    with pytest.raises(Killed):
        first.read(queue.out)
    second = successor(first)
    assert second.recovered() == (ONE, True)
    queue.put(TWO)
    with pytest.raises(Killed):
        second.read(queue.out)
    third = successor(first)
    assert third.recovered() == (ONE + TWO, False)
    for one in (first, second, third):
        one.close()


def test_memory_that_could_not_be_locked_leaves_a_doubt(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: int, length: int) -> None:
        raise OSError(12, "too much")

    monkeypatch.setattr("replicator.syscalls.mlock", refuse)
    first = Scratch.make(SIZE)
    queue.put(ONE)
    monkeypatch.setattr(os, "readv", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        first.read(queue.out)
    second = successor(first)
    assert second.recovered() == (b"", True)
    for one in (first, second):
        one.close()


def test_there_is_an_end_of_the_room(queue: Queue) -> None:
    scratch = Scratch.make(SIZE)
    long = event(b"x" * 3000)
    for _ in range(3):
        queue.put(long)
        assert scratch.read(queue.out) == long
    queue.put(long)
    assert scratch.read(queue.out) is None
    scratch.clear()
    assert scratch.read(queue.out) == long
    scratch.close()


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(4096 + SIZE), b"x" * (4096 + SIZE)])
def test_another_memory_is_refused(content: bytes) -> None:
    descriptor = os.memfd_create("other")
    os.write(descriptor, content)
    with pytest.raises(ValueError, match="not a memory of events"):
        Scratch(descriptor)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


@given(events)
def test_events_that_were_copied_whole_are_found(made: list[bytes]) -> None:
    data = b"".join(made)
    assert whole(data.ljust(SIZE, bytes([BLANK]))) == (len(data), False)


@given(events.filter(bool), st.data())
def test_an_event_that_was_copied_in_part_is_told_and_those_before_it_are_kept(
    made: list[bytes], data: st.DataObject
) -> None:
    """A page can end at any fourth byte."""
    before, last = b"".join(made[:-1]), made[-1]
    cut = 4 * data.draw(st.integers(1, len(last) // 4 - 1))
    blank = bytes([BLANK])
    assert whole((before + last[:cut]).ljust(SIZE, blank)) == (len(before), True)


@given(st.binary(max_size=500))
def test_garbage_ends_somewhere(data: bytes) -> None:
    length, _ = whole(data)
    assert 0 <= length <= len(data)

"""An epoch on its way: cutting it into messages, and putting it together again. No I/O.

Neither side copies the bytes. What arrives must be exactly what the facts declared, range by range, in their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from replicator.errors import RemoteError
from replicator.link.frame import MAX_DATA, Buffer
from replicator.link.message import Data, End, FactsFrame, Message
from replicator.model import Facts

MAX_EPOCH = 64 * 2**20
"""Most bytes of data in one epoch."""

Piece = tuple[int, int, Buffer]
"""(index of the inode in Facts.inodes, offset in bytes, bytes)"""


@dataclass(frozen=True, slots=True)
class Epoch:
    """A complete epoch. `payload` covers the `data` ranges of the facts exactly, in their order."""

    facts: Facts
    payload: tuple[Piece, ...]


def messages(facts: Facts, payload: Iterable[Piece]) -> Iterator[FactsFrame | Data | End]:
    """The messages that carry an epoch. `payload` must cover the facts' `data` ranges in order, as in `Epoch`."""
    yield FactsFrame(facts)
    frames = length = 0
    for index, offset, data in payload:
        view = memoryview(data)
        for start in range(0, len(view), MAX_DATA):
            part = view[start : start + MAX_DATA]
            yield Data(facts.epoch, index, offset + start, part)
            frames += 1
            length += len(part)
    yield End(facts.epoch, frames, length)


def declared(facts: Facts) -> int:
    """Bytes of data that the facts say will follow."""
    return sum(extent.length for fact in facts.inodes for extent in fact.data)


class EpochAssembler:
    """Takes Facts, Data* and End in this order and gives the epoch at its end.

    RemoteError for anything else: another order, bytes that were not declared, too few of them, or more than `limit`
    in total. Holds no more than `limit` bytes of data, as frames are refused before they would exceed it.
    """

    def __init__(self, limit: int = MAX_EPOCH) -> None:
        self._limit = limit
        self._facts: Facts | None = None
        self._expected: list[tuple[int, int, int]] = []  # (index, offset, end), what has not arrived
        self._next = 0
        self._payload: list[Piece] = []
        self._length = 0

    @property
    def idle(self) -> bool:
        """Whether no epoch is under way."""
        return self._facts is None

    def add(self, message: Message) -> Epoch | None:
        """Take the next message of an epoch; the epoch if this was its End."""
        match message:
            case FactsFrame(facts) if self._facts is None:
                self._begin(facts)
            case Data(epoch, index, offset, data) if self._facts is not None and epoch == self._facts.epoch:
                self._data(index, offset, data)
            case End(epoch, frames, length) if self._facts is not None and epoch == self._facts.epoch:
                return self._end(self._facts, frames, length)
            case _:
                raise RemoteError(f"the peer sent {type(message).__name__} where it does not belong in an epoch")
        return None

    def _begin(self, facts: Facts) -> None:
        total = declared(facts)
        if total > self._limit:
            raise RemoteError(
                f"the peer's epoch {facts.epoch} is to hold {total} bytes, more than the {self._limit} allowed"
            )
        self._facts = facts
        self._expected = [
            (index, extent.offset, extent.end) for index, fact in enumerate(facts.inodes) for extent in fact.data
        ]
        self._next, self._payload, self._length = 0, [], 0

    def _data(self, index: int, offset: int, data: Buffer) -> None:
        if self._next == len(self._expected):
            raise RemoteError("the peer sent more data than the epoch's facts declared")
        expected_index, start, end = self._expected[self._next]
        stop = offset + len(data)
        if (index, offset) != (expected_index, start) or stop > end:
            raise RemoteError(
                f"the peer sent bytes {offset} to {stop} of inode {index} of an epoch that now declared"
                f" {start} to {end} of inode {expected_index}"
            )
        if stop == end:
            self._next += 1
        else:
            self._expected[self._next] = (index, stop, end)
        self._payload.append((index, offset, data))
        self._length += len(data)

    def _end(self, facts: Facts, frames: int, length: int) -> Epoch:
        if self._next != len(self._expected) or frames != len(self._payload) or length != self._length:
            raise RemoteError(
                f"the peer's epoch {facts.epoch} is not complete: {len(self._payload)} of {frames} frames and"
                f" {self._length} of {length} bytes arrived"
            )
        done = Epoch(facts, tuple(self._payload))
        self._facts, self._expected, self._payload = None, [], []
        return done


def covers(facts: Facts, payload: Sequence[Piece]) -> bool:
    """Whether `payload` is what `messages()` asks for; for assertions of whoever makes one."""
    declared = [(index, *extent) for index, fact in enumerate(facts.inodes) for extent in fact.data]
    if declared == [(index, offset, len(data)) for index, offset, data in payload]:
        return True
    assembler = EpochAssembler(limit=2**63)
    try:
        return any(assembler.add(message) for message in messages(facts, payload))
    except RemoteError:
        return False

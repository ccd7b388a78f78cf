"""An epoch on its way: cutting it into messages, and putting it together again. No I/O.

What arrives must be exactly what the facts declared, range by range, in their order. A message of bytes may go on from
one range to the next, of the same inode or of a later one: a message for each of many small ranges would cost more than
their bytes do. Neither side copies what is long.
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

SHORT = 1 << 16
"""Pieces below so many bytes travel together, ..."""
TOGETHER = 1 << 18
"""... up to so many bytes of them."""

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
    for index, offset, data in _gathered(payload):
        yield Data(facts.epoch, index, offset, data)
        frames += 1
        length += len(data)
    yield End(facts.epoch, frames, length)


def _gathered(payload: Iterable[Piece]) -> Iterator[Piece]:
    """Pieces as they travel: short ones joined with what follows, those that are too long for a frame cut."""
    parts: list[Buffer] = []
    first, held = (0, 0), 0
    for index, offset, data in payload:
        size = len(data)
        if parts and (size >= SHORT or held + size > TOGETHER):
            yield (*first, parts[0] if len(parts) == 1 else b"".join(parts))
            parts, held = [], 0
        if size < SHORT:
            if not parts:
                first = index, offset
            parts.append(data)
            held += size
            continue
        view = memoryview(data)
        for start in range(0, size, MAX_DATA):
            yield index, offset + start, view[start : start + MAX_DATA]
    if parts:
        yield (*first, parts[0] if len(parts) == 1 else b"".join(parts))


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
        self._frames = self._length = 0

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
        self._next, self._payload, self._frames, self._length = 0, [], 0, 0

    def _data(self, index: int, offset: int, data: Buffer) -> None:
        expected, view, at, size = self._expected, memoryview(data), 0, len(data)
        while at < size:
            if self._next == len(expected):
                raise RemoteError("the peer sent more data than the epoch's facts declared")
            inode, start, end = expected[self._next]
            if not at and (index, offset) != (inode, start):
                raise RemoteError(
                    f"the peer sent bytes of inode {index} from {offset} on, of an epoch that now declared"
                    f" {start} to {end} of inode {inode}"
                )
            taken = min(end - start, size - at)
            self._payload.append((inode, start, view[at : at + taken]))
            at += taken
            if start + taken == end:
                self._next += 1
            else:
                expected[self._next] = (inode, start + taken, end)
        self._frames += 1
        self._length += size

    def _end(self, facts: Facts, frames: int, length: int) -> Epoch:
        if self._next != len(self._expected) or frames != self._frames or length != self._length:
            raise RemoteError(
                f"the peer's epoch {facts.epoch} is not complete: {self._frames} of {frames} frames and"
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

"""How much bulk may be on its way before a small change, which cannot overtake what has been sent.

Takes what is read, sent and applied; says how much of a big file is read at once, and how many bytes of bulk the next
epoch may carry. Bulk that has the link for itself goes in large epochs, as many as there may be. Once another file has
changed a little, bulk goes in small slices, and no more of them are sent than the replica takes in some milliseconds:
a window of (measured rate) x (round trip + TARGET), so that a long path stays full. Pure; times are ns of one clock
that is never set.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from replicator.model import FileId, Kind
from replicator.source.flight import Part

UNAPPLIED = 4
"""Epochs of a sort (with bulk, without) that are sent and not yet visible on the replica: while there are so many, what
changes is gathered into the next."""
EPOCH_BYTES = 8 << 20
"""Bytes of one epoch, about: the fewer epochs, the less work for each byte."""
SMALL = 1 << 16
"""Bytes: a part of more than that is bulk. Below it the bytes cost less than the epoch around them."""
SLICE = 1 << 20
"""Bytes of bulk that are read and sent together while there are small changes: 1 to 2 ms of the replica's time."""
LEAST = 2 * SLICE
"""Bytes, the least window: the replica has one slice to write while the other is on its way."""
TARGET = 4_000_000
"""ns that bulk may keep a small change waiting, if a window of that keeps the replica busy."""
LATELY = 10_000_000_000
"""ns after a small change in which another one is expected."""
_WEIGHT = 0.25
"""Of a new measurement of the rate: a single one depends on who had the processor just then."""


@dataclass(slots=True)
class _Sent:
    number: int
    bulk: int
    """Bytes; 0 if it is an epoch of small changes."""
    at: int
    applied: int
    """Bytes of bulk that had been applied when it was sent."""


def is_bulk(part: Part) -> bool:
    """Whether it is a slice of a big change."""
    return part.fact.partial or part.size > SMALL


class Traffic:
    """Of one outbox, over any number of connections."""

    def __init__(self) -> None:
        self._flight: deque[_Sent] = deque()
        self._small: int | None = None  # when a small change was last read
        self._big: FileId | None = None  # the last file with a part that was bulk
        self._applied = 0
        self._rate = 0.0  # bytes of bulk a ns
        self._round_trip = 0

    def read(self, part: Part, now: int) -> None:
        """Such a part was read. What a big file ends with is no small change."""
        if is_bulk(part):
            self._big = part.flush.owed.id
        elif part.size and part.fact.kind is Kind.FILE and part.flush.owed.id != self._big:
            self._small = now

    def shared(self, now: int) -> bool:
        """Whether small changes came lately."""
        return self._small is not None and now - self._small < LATELY

    def slice(self, now: int) -> int:
        """Bytes of a big file to read at once, at most."""
        return SLICE if self.shared(now) else EPOCH_BYTES

    @property
    def open(self) -> bool:
        """Whether an epoch of small changes may be sent."""
        return sum(not sent.bulk for sent in self._flight) < UNAPPLIED

    def room(self, now: int) -> int:
        """Bytes of bulk, about, that the next epoch may carry."""
        if not self.shared(now):
            return EPOCH_BYTES if sum(sent.bulk > 0 for sent in self._flight) < UNAPPLIED else 0
        return SLICE if sum(sent.bulk for sent in self._flight) + SLICE <= self.window else 0

    @property
    def measurable(self) -> bool:
        """Whether bulk is on its way, so that `applied` wants to know the round trip."""
        return any(sent.bulk for sent in self._flight)

    @property
    def window(self) -> int:
        """Bytes of bulk that may be on their way while there are small changes."""
        return max(LEAST, int(self._rate * (self._round_trip + TARGET)))

    def sent(self, number: int, bulk: int, now: int) -> None:
        """An epoch with so many bytes of bulk was sent."""
        self._flight.append(_Sent(number, bulk, now, self._applied))

    def applied(self, number: int, now: int, round_trip: int) -> None:
        """Epochs up to this one are visible on the replica. `round_trip`: the path's own, in ns, if `measurable`."""
        while self._flight and self._flight[0].number <= number:
            sent = self._flight.popleft()
            self._applied += sent.bulk
            if sent.bulk and now > sent.at:
                self._round_trip = round_trip
                rate = (self._applied - sent.applied) / (now - sent.at)
                self._rate += (rate - self._rate) * (_WEIGHT if self._rate else 1.0)

    def lost(self) -> None:
        """The connection is: nothing is on its way, and the next one may be another path."""
        self._flight.clear()
        self._rate = 0.0
        self._round_trip = 0

"""The journal: everything that the kernel has said and the replica does not durably have yet.

Takes records and marks before they are acted on; a successor gets them back and acts on them once more. A segment is
removed when every generation that was marked while it was written is durable on the replica and in the index.

A disk that takes no more ends the journal, not the sender: it is removed, so that a successor sees the gap and compares
with the index, and it is begun anew, from a snapshot of what is owed, when there is room again. Bounded: above LIMIT
bytes it is replaced by such a snapshot. It survives the death of the process; a power cut takes what was appended since
the last sync, and the hooks with it, which is a gap in any case.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import orjson

from replicator.capture.event import EVENT, Events
from replicator.dirty.generations import Generations
from replicator.journal.marks import Mark, decode, encode
from replicator.journal.segments import Damaged, Segments

log = logging.getLogger(__name__)

VERSION: Final = 1
LIMIT: Final = 64 << 20
_HEADER, _EVENTS, _MARKS = 0, 1, 2
_SEGMENT: Final = 4 << 20
_AGE: Final = 250_000_000  # ns
_AGAIN: Final = 5_000_000_000  # ns
_TOGETHER: Final = 1000
"""Marks in one frame of a snapshot."""

Item = Events | list[Mark]


class Journal:
    """One sender's. Times are CLOCK_MONOTONIC in ns."""

    def __init__(
        self,
        directory: Path,
        instance: int,
        generations: Generations,
        snapshot: Callable[[], Iterable[Mark]],
        forsaken: Callable[[], None],
    ) -> None:
        """`instance`: the sender's, which a predecessor must have had too; `snapshot` gives what is owed now.

        `forsaken` is called when the disk takes nothing, not even the removal of what is there: a successor would take
        that for the whole truth, and must be kept from it.
        """
        self._segments = Segments(directory)
        self._header = {"version": VERSION, "instance": instance, "record": EVENT.itemsize}
        self._generations = generations
        self._snapshot = snapshot
        self._forsaken = forsaken
        self._closed: deque[tuple[int, int]] = deque()
        self._begun = 0
        self._dirty = False
        self._limit = LIMIT
        self._next_try = 0
        self.keeping = False
        """Whether what is said to it is kept."""
        self.trouble = ""
        """Why it is not kept; empty if it is, or is not meant to be yet."""

    # ------------------------------------------------------------------ the predecessor's

    def restored(self) -> Iterator[Item] | None:
        """What a predecessor left, in order; None if it left nothing that is whole, which is a gap.

        To be called before `begin`, and to be acted on before `restored_all`.
        """
        items: list[Item] = []
        try:
            for frame in self._segments.read():
                if frame.kind == _HEADER:
                    if orjson.loads(frame.payload) != self._header:
                        raise Damaged("it is of another sender or version")
                elif frame.kind == _EVENTS:
                    items.append(np.frombuffer(frame.payload, EVENT).copy())
                else:
                    items.append([decode(value) for value in orjson.loads(frame.payload)])
        except (OSError, ValueError, Damaged) as error:
            log.warning("the journal cannot be used: %s", error)
            return None
        return iter(items) if self._segments.numbers else None

    def restored_all(self) -> None:
        """What was restored is owed: it is kept until that is durable."""
        if self._segments.numbers:
            self._closed.append((self._segments.numbers[-1], self._generations.close()))

    def forget(self) -> None:
        """Nothing that a predecessor left counts."""
        self._segments.remove_all()
        self._closed.clear()

    # ------------------------------------------------------------------ appending

    def begin(self, now: int, *, anew: bool) -> None:
        """Keep what is said from here on, and (`anew`) what is owed already. If the disk does not take it, that is
        tried again."""
        try:
            if anew:
                self._compact(now)
            else:
                self._turn(now)
        except OSError as error:
            self._fail(error, now)
        else:
            self.keeping = True

    def events(self, records: bytes, now: int) -> None:
        """Keep records of the kernel, as they lie in memory. When it returns, they survive the process (or the journal
        is given up)."""
        if self.keeping and records:
            self._append(_EVENTS, records, now)

    def marks(self, marks: Iterable[Mark], now: int) -> None:
        """Keep marks likewise."""
        if self.keeping:
            values = [encode(mark) for mark in marks]
            if values:
                self._append(_MARKS, orjson.dumps(values), now)

    def renew(self, instance: int, now: int) -> None:
        """The sender is another instance from here on."""
        self._header["instance"] = instance
        if self.keeping:
            self.begin(now, anew=True)

    def tick(self, now: int) -> None:
        """To be called a few times a second: new segments, snapshots, and trying again."""
        try:
            if self.keeping:
                if self._segments.size() > self._limit:
                    self._compact(now)
                elif self._dirty and (now - self._begun > _AGE or self._segments.written > _SEGMENT):
                    self._turn(now)
            elif self.trouble and now >= self._next_try:
                self._compact(now)
                log.warning("the journal is kept again")
                self.keeping, self.trouble = True, ""
        except OSError as error:
            self._fail(error, now)

    def settled(self) -> int:
        """The number of the last segment of which everything is durable on the replica; 0 if there is none."""
        number = 0
        while self._closed and self._generations.settled(self._closed[0][1]):
            number = self._closed.popleft()[0]
        return number

    def remove(self, number: int) -> None:
        """The index has, durably, what was durable when `settled` gave this number."""
        self._segments.remove(number)

    def to_sync(self) -> int | None:
        """A descriptor to be synced and closed; None if nothing was appended since the last."""
        if not self._dirty or not self.keeping:
            return None
        return self._segments.duplicate()

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._segments.size()

    def close(self) -> None:
        """Leave it to a successor."""
        self._segments.close()

    # ------------------------------------------------------------------ how

    def _append(self, kind: int, payload: bytes, now: int) -> None:
        try:
            self._segments.append(kind, payload)
            self._dirty = True
        except OSError as error:
            self._fail(error, now)

    def _turn(self, now: int) -> None:
        """Begin a new segment; the present one can go when what is owed now is durable."""
        if self.keeping:
            self._closed.append((self._segments.numbers[-1], self._generations.close()))
        self._segments.begin()
        self._segments.append(_HEADER, orjson.dumps(self._header))
        self._begun, self._dirty = now, False

    def _compact(self, now: int) -> None:
        """A new segment that says all that is owed, instead of the old ones."""
        old = self._segments.numbers[-1] if self._segments.numbers else 0
        self._segments.begin()
        self._segments.append(_HEADER, orjson.dumps(self._header))
        self._begun, self._dirty = now, True
        together: list[object] = []
        for mark in self._snapshot():
            together.append(encode(mark))
            if len(together) >= _TOGETHER:
                self._segments.append(_MARKS, orjson.dumps(together))
                together = []
        if together:
            self._segments.append(_MARKS, orjson.dumps(together))
        self._segments.remove(old)
        self._closed.clear()
        self._limit = max(LIMIT, 2 * self._segments.written)

    def _fail(self, error: OSError, now: int) -> None:
        if not self.trouble:
            log.error(
                "cannot write the journal: %s (%s); a restart now would compare the source with the index: free space",
                error.strerror,
                error.filename or "in the state directory",
            )
        self.keeping, self.trouble = False, error.strerror or str(error)
        self._next_try = now + _AGAIN
        self._closed.clear()
        try:
            self._segments.remove_all()
        except OSError as worse:
            log.error("cannot remove the journal either: %s; the hooks will not be handed on", worse.strerror)
            self._forsaken()


def sync(descriptor: int) -> None:
    """Sync a segment; to be called in a worker thread. OSError."""
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)

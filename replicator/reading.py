"""The sender's reads: which flushes are out, and what comes of those that return.

Takes a source and the outbox; starts reads in worker threads and gives what was read back to the outbox. Driven by the
sender's loop; never blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from replicator.intake import Intake
from replicator.model import FileId, Slot
from replicator.source.flight import Flush
from replicator.source.glance import Glance
from replicator.source.outbox import Outbox
from replicator.source.pages import PageHashes
from replicator.source.pool import ReadPool
from replicator.source.read import Outcome, Reader
from replicator.tree.handles import SourceRoot

log = logging.getLogger(__name__)

READING = 256
"""Flushes that may be out to be read: what a turn costs is shared by so many small files."""
FEW = 4
"""Up to so many flushes are read at once, if they can be: more are quicker read by several threads."""
CALM = 2_000_000  # ns
SECOND = 1_000_000_000


class Reading:
    """One sender's. `describe` names an inode for people."""

    def __init__(
        self, source: SourceRoot, outbox: Outbox, intake: Intake, describe: Callable[[Slot | FileId], str]
    ) -> None:
        self._outbox = outbox
        self._intake = intake
        self._describe = describe
        self._pages = PageHashes()
        self._glance = Glance(source)
        self._pool = ReadPool(Reader(source, self._pages))

    def fileno(self) -> int:
        """Readable when `take` has something to do."""
        return self._pool.fileno()

    def start(self, now: int) -> None:
        """Have read what is owed and may be read."""
        room = READING - len(self._outbox.reads)
        if room > 0 or self._outbox.reads.readable or self._outbox.reads.sought:
            if self._outbox.table.repeats:
                self._intake.fence()
            flushes = self._outbox.reads.begin(now, max(0, room), calm=CALM)
            if 0 < len(flushes) <= FEW:
                flushes = self._read_at_once(flushes, now)
            if flushes:
                self._pool.submit(flushes)

    def _read_at_once(self, flushes: list[Flush], now: int) -> list[Flush]:
        """Read what can be read without waiting; what is left to the workers."""
        outcomes = {id(flush): self._glance.read(flush) for flush in flushes}
        self._take([outcome for outcome in outcomes.values() if outcome is not None], now)
        return [flush for flush in flushes if outcomes[id(flush)] is None]

    def take(self, now: int) -> None:
        """Give the outbox what has been read."""
        self._take(self._pool.collect(), now)

    def _take(self, outcomes: list[Outcome], now: int) -> None:
        if outcomes:
            self._intake.take_records()  # so that what these reads have seen is known to be owed, and can be let go
        for outcome in outcomes:
            flush = outcome.flush
            if not self._outbox.reads.current(flush):
                continue
            if outcome.error is not None:
                self._unreadable(outcome.error, flush, now)
            elif outcome.early:
                self._outbox.reads.put_off(flush)
            elif outcome.part is None:
                self._outbox.reads.gone(flush)
            else:
                self._read(outcome, now)

    def forget_pages(self) -> None:
        """The replica may not have what was read: no page of a mapping counts as known there."""
        self._pages.clear()

    def close(self) -> None:
        """Let the threads end."""
        self._pool.close()

    def _unreadable(self, error: OSError, flush: Flush, now: int) -> None:
        if self._outbox.index.path(flush.owed.id) is None:
            self._outbox.reads.gone(flush)  # an inode that is being removed can say anything
            return
        log.error("cannot read %s: %s; trying again", self._describe(flush.owed.id), error.strerror)
        self._outbox.reads.failed(flush, now)

    def _read(self, outcome: Outcome, now: int) -> None:
        assert outcome.part is not None
        flush = outcome.flush
        self._pages.forget(flush.owed.id, outcome.sent)
        self._pages.remember(flush.owed.id, outcome.hashes)
        if outcome.beyond:
            self._outbox.reads.owe_again(flush, outcome.beyond, now)
        if outcome.seconds:  # writing a mapping out costs the disk: leave it four times as long as it took
            self._outbox.pace.rest(flush.owed.id, now + int(4 * outcome.seconds * SECOND))
        self._outbox.reads.done(outcome.part, now)

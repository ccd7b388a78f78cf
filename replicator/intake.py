"""What the kernel says, into the outbox: names, byte ranges, and what it could not hand over.

Takes a sensor and, if that does not tell names, the names' queue; marks what is owed and what is to be looked at. Loss
widens what is looked at again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import numpy as np

from replicator.capture.event import EVENT, EventKind, Events
from replicator.capture.looks import parted
from replicator.capture.names import InodeLook, ListLook, Look, MovedLook, Names, Overflow, SlotLook
from replicator.capture.sensor import NAMELESS_LOSSES, Sensor
from replicator.dirty.merge import merge, merge_few
from replicator.journal.journal import Item, Journal
from replicator.journal.marks import Doubt, Partial, Whole
from replicator.observe.metrics import SenderMetrics
from replicator.source import snapshot
from replicator.source.outbox import Outbox

log = logging.getLogger(__name__)

SOON, LATE = 1_000_000_000, 15_000_000_000
"""Nanoseconds from a change's beginning on in which it will have been counted that nobody told of it: most often before
the call returns, but a return that was missed is waited for (capture/calls.py)."""

FEW = 8
"""Up to so many records are taken one by one."""
_KIND = list(EVENT.fields or ()).index("kind")
_KINDS = {int(kind): kind.name.lower() for kind in EventKind}


class Intake:
    """What the kernel says of one source."""

    def __init__(
        self,
        sensor: Sensor,
        names: Names | None,
        outbox: Outbox,
        metrics: SenderMetrics,
        journal: Journal,
        survey: Callable[[bool], None],
    ) -> None:
        """`survey` has everything looked for that the kernel could not tell: changes of content too, or not."""
        self._sensor = sensor
        self._names = names
        self._outbox = outbox
        self._metrics = metrics
        self._journal = journal
        self._survey = survey
        self._losses = sensor.acknowledged()
        self._sound = self._named = time.monotonic_ns()

    def take_names(self, now: int) -> None:
        """Take what is in the names' queue now: looks for the resolver, attributes for the table."""
        while self._names is not None:
            looks = self._names.drain_queued()
            sound, self._named = self._named, now
            if Overflow() in looks:
                self._lost(sound - SOON, now, content=False)
            self._journal.marks(looks, now)
            self._names.advance()
            for look in looks:
                self._look(look, now)
            if looks:
                inodes = sum(isinstance(look, InodeLook) for look in looks)
                self._metrics.events.add("inode", inodes)
                self._metrics.events.add("name", len(looks) - inodes)
            if not self._names.behind:
                return

    def _look(self, look: Look, since: int, *, force: bool = False) -> None:
        index, resolver = self._outbox.index, self._outbox.resolver
        if isinstance(look, SlotLook):
            if index.is_member(look.slot.parent):
                resolver.look(look.slot, since, force=force)
        elif isinstance(look, InodeLook):
            if index.is_member(look.id):
                self._outbox.table.mark(look.id, since)
        elif isinstance(look, MovedLook):
            for slot in index.slots_of(look.id):
                resolver.look(slot, since, force=force)
        elif isinstance(look, ListLook):
            if index.is_directory(look.id):
                resolver.list(look.id, since)
                if force:
                    self._outbox.unlisted.add(look.id, since)
        else:
            self._names_lost()

    def _names_lost(self) -> None:
        """Names or attributes changed and the kernel could not say where."""
        log.warning("the queue of name events overflowed: looking for what changed (see fs.fanotify.max_queued_events)")
        self._metrics.events_dropped.add("names_overflow")
        self._metrics.resyncs.add("names_overflow")
        self._survey(False)

    def take_records(self) -> None:
        """Take what is in the ring by now; what comes meanwhile is left to the next turn."""
        end = self._sensor.produced()
        few = self._sensor.few(FEW)
        if few is not None:
            self._take_few(*few)
            if self._sensor.consumed() >= end:
                return
        for _ in range(16):
            records = self._sensor.drain(1 << 16)
            if records is None:
                return
            for kind, amount in enumerate(np.bincount(records["kind"]).tolist()):
                if amount:
                    self._metrics.events.add(_KINDS.get(kind, "whole"), amount)
            records, looks = parted(records, self._sensor.names())
            now = time.monotonic_ns()
            self._journal.marks((look for _, look in looks), now)
            self._journal.events(records.tobytes(), now)
            self._sensor.advance()
            for since, look in looks:
                self._look(look, since)
            self._merge(records)
            if self._sensor.consumed() >= end:
                return

    def _take_few(self, records: list[tuple[int, ...]], raw: bytes) -> None:
        """None of them has a name."""
        for record in records:
            self._metrics.events.add(_KINDS.get(record[_KIND], "whole"))
        self._journal.events(raw, time.monotonic_ns())
        self._sensor.advance()
        outbox = self._outbox
        merge_few(records, outbox.table, outbox.index.is_member, outbox.outsiders, outbox.writers)

    def _merge(self, records: Events) -> None:
        outbox = self._outbox
        if len(records):
            merge(records, outbox.table, outbox.index.is_member, outbox.outsiders, outbox.writers)

    def restore(self, items: Iterable[Item]) -> None:
        """Act once more on what a predecessor had in its journal: whatever of it the replica knows is told again."""
        now = time.monotonic_ns()
        for item in items:
            if not isinstance(item, list):
                item["ts"] = np.minimum(item["ts"], now)
                self._merge(item)
                continue
            for mark in item:
                if isinstance(mark, Whole | Doubt | Partial):
                    snapshot.restore(self._outbox, mark, now)
                else:
                    self._look(mark, now, force=True)

    def fence(self) -> None:
        """What the kernel side leaves untold from here on is told of by records that are not drained yet."""
        table = self._outbox.table
        table.fence = self._sensor.fence()
        table.repeats = False

    def check_losses(self) -> None:
        """Widen what is owed by whatever the kernel could not hand over."""
        now = time.monotonic_ns()
        sound, self._sound = self._sound, now
        losses = self._sensor.losses()
        grown = {cause for cause, total in losses.items() if total > self._losses.get(cause, 0)}
        for cause in grown:
            self._metrics.events_dropped.add(cause, losses[cause] - self._losses.get(cause, 0))
        self._losses = losses
        if not grown:
            self._outbox.reads.forget_before(now - LATE)
            return
        outbox = self._outbox
        named = self._sensor.lost_inodes()
        lost = [id for id in named if outbox.index.is_member(id)]
        self._journal.marks((Doubt(id) for id in lost), now)
        for id in named:
            if not outbox.index.is_member(id):
                outbox.outsiders.note(id)  # as below
        for id in lost:
            outbox.suspicion.doubt(id, now, lost=True)
            if outbox.index.is_directory(id):
                outbox.resolver.list(id, now)
        log.warning("the kernel dropped events (%s): %d files are compared", ", ".join(sorted(grown)), len(lost))
        if grown & NAMELESS_LOSSES:
            log.warning("it is not known of which files: looking for what changed")
            self._metrics.resyncs.add("events_lost")
            self._lost(sound - (LATE if "probe_missed" in grown else SOON), now, content=True)
            self._survey(True)
        self._sensor.forget_lost(named)
        self._sensor.acknowledge(losses)

    def _lost(self, since: int, now: int, *, content: bool) -> None:
        """Changes since then may have been lost, nobody knows of what."""
        doubtful = self._outbox.suspicion.since(since)
        marks = (Doubt(id) if content else InodeLook(id) for id in doubtful)
        lists = (ListLook(id) for id in doubtful if self._outbox.index.is_directory(id))
        self._journal.marks([Overflow(), *marks, *lists], now)
        self._outbox.suspicion.distrust(doubtful, now, content=content)
        if content:  # until the survey has had everything written out
            self._outbox.outsiders.forget()

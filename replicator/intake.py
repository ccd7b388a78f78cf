"""What the kernel says, into the outbox: names, byte ranges, and what it could not hand over.

Takes a sensor and, if that does not tell names, the names' queue; marks what is owed and what is to be looked at. Loss
widens what is looked at again.
"""

from __future__ import annotations

import logging
import time

import numpy as np

from replicator.capture.event import EventKind
from replicator.capture.looks import parted
from replicator.capture.names import InodeLook, ListLook, Look, MovedLook, Names, SlotLook
from replicator.capture.sensor import NAMELESS_LOSSES, Sensor
from replicator.dirty.merge import merge
from replicator.observe.metrics import SenderMetrics
from replicator.source.outbox import Outbox

log = logging.getLogger(__name__)

SOON, LATE = 1_000_000_000, 15_000_000_000
"""Nanoseconds from a change's beginning on in which it will have been counted that nobody told of it: most often before
the call returns, but a return that was missed is waited for (capture/calls.py)."""

_KINDS = {int(kind): kind.name.lower() for kind in EventKind}


class Intake:
    """What the kernel says of one source."""

    def __init__(self, sensor: Sensor, names: Names | None, outbox: Outbox, metrics: SenderMetrics) -> None:
        self._sensor = sensor
        self._names = names
        self._outbox = outbox
        self._metrics = metrics
        self._losses: dict[str, int] = {}
        self._sound = time.monotonic_ns()

    def take_names(self, now: int) -> None:
        """Take what is in the names' queue now: looks for the resolver, attributes for the table."""
        if self._names is None:
            return
        looks = self._names.drain_queued()
        for look in looks:
            self._look(look, now)
        if looks:
            inodes = sum(isinstance(look, InodeLook) for look in looks)
            self._metrics.events.add("inode", inodes)
            self._metrics.events.add("name", len(looks) - inodes)

    def _look(self, look: Look, since: int) -> None:
        index, resolver = self._outbox.index, self._outbox.resolver
        if isinstance(look, SlotLook):
            if index.is_member(look.slot.parent):
                resolver.look(look.slot, since)
        elif isinstance(look, InodeLook):
            if index.is_member(look.id):
                self._outbox.table.mark(look.id, since)
        elif isinstance(look, MovedLook):
            for slot in index.slots_of(look.id):
                resolver.look(slot, since)
        elif isinstance(look, ListLook):
            if index.is_member(look.id):
                resolver.list(look.id, since)
        else:
            self._names_lost(since)

    def _names_lost(self, now: int) -> None:
        """Names or attributes changed and the kernel could not say where: look at all of them again."""
        log.warning("the queue of name events overflowed: looking at every file (raise fs.fanotify.max_queued_events)")
        self._metrics.events_dropped.add("names_overflow")
        self._metrics.resyncs.add("names_overflow")
        for id in self._outbox.index.subtree(self._outbox.index.root):
            self._outbox.table.mark(id, now)
        self._list_all(now)

    def _list_all(self, now: int) -> None:
        for id in self._outbox.index.subtree(self._outbox.index.root):
            if self._outbox.index.is_directory(id):
                self._outbox.resolver.list(id, now)

    def take_records(self) -> None:
        """Take what is in the ring, up to about a million records."""
        for _ in range(16):
            records = self._sensor.drain(1 << 16)
            if records is None:
                return
            for kind, amount in enumerate(np.bincount(records["kind"]).tolist()):
                if amount:
                    self._metrics.events.add(_KINDS.get(kind, "whole"), amount)
            records, looks = parted(records, self._sensor.names())
            for since, look in looks:
                self._look(look, since)
            outbox = self._outbox
            if len(records):
                merge(records, outbox.table, outbox.index.is_member, outbox.outsiders, outbox.writers)
            self._sensor.advance()

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
            self._outbox.forget_told(now - LATE)
            return
        lost = [id for id in self._sensor.lost_inodes() if self._outbox.index.is_member(id)]
        for id in lost:
            self._outbox.doubt(id, now)
            if self._outbox.index.is_directory(id):
                self._outbox.resolver.list(id, now)
        log.warning("the kernel dropped events (%s): %d files are compared", ", ".join(sorted(grown)), len(lost))
        if grown & NAMELESS_LOSSES:
            log.warning("it is not known of which files: all are compared with the replica")
            self._metrics.resyncs.add("events_lost")
            self._outbox.compare_all(now, sound - (LATE if "probe_missed" in grown else SOON))
            if self._sensor.tells_names:
                self._list_all(now)

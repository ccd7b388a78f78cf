"""What the kernel says, into the outbox: names, byte ranges, and what it could not hand over.

Takes a sensor and the names' queue; marks what is owed and what is to be looked at. Loss widens what is looked at
again.
"""

from __future__ import annotations

import logging
import time

import numpy as np

from replicator.capture.event import EventKind
from replicator.capture.names import InodeLook, Names, Overflow, SlotLook
from replicator.capture.sensor import NAMELESS_LOSSES, Sensor
from replicator.dirty.merge import merge
from replicator.observe.metrics import SenderMetrics
from replicator.source.outbox import Outbox

log = logging.getLogger(__name__)

_KINDS = {int(kind): kind.name.lower() for kind in EventKind}


class Intake:
    """Both channels of one source."""

    def __init__(self, sensor: Sensor, names: Names, outbox: Outbox, metrics: SenderMetrics) -> None:
        self._sensor = sensor
        self._names = names
        self._outbox = outbox
        self._metrics = metrics
        self._losses: dict[str, int] = {}

    def take_names(self, now: int) -> None:
        """Take what is in the names' queue now: looks for the resolver, attributes for the table."""
        looks = self._names.drain_queued()
        inodes = 0
        for look in looks:
            if isinstance(look, SlotLook):
                if self._outbox.index.is_member(look.slot.parent):
                    self._outbox.resolver.look(look.slot, now)
            elif isinstance(look, InodeLook):
                inodes += 1
                if self._outbox.index.is_member(look.id):
                    self._outbox.table.mark(look.id, now)
            elif isinstance(look, Overflow):
                self._names_lost(now)
        if looks:
            self._metrics.events.add("inode", inodes)
            self._metrics.events.add("name", len(looks) - inodes)

    def _names_lost(self, now: int) -> None:
        """Names or attributes changed and the kernel could not say where: look at all of them again."""
        log.warning("the queue of name events overflowed: looking at every file (raise fs.fanotify.max_queued_events)")
        self._metrics.events_dropped.add("names_overflow")
        self._metrics.resyncs.add("names_overflow")
        for id in self._outbox.index.subtree(self._outbox.index.root):
            self._outbox.table.mark(id, now)
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
            outbox = self._outbox
            merge(records, outbox.table, outbox.index.is_member, outbox.outsiders, outbox.writers)
            self._sensor.advance()

    def check_losses(self) -> None:
        """Widen what is owed by whatever the kernel could not hand over."""
        losses = self._sensor.losses()
        grown = {cause for cause, total in losses.items() if total > self._losses.get(cause, 0)}
        for cause in grown:
            self._metrics.events_dropped.add(cause, losses[cause] - self._losses.get(cause, 0))
        self._losses = losses
        if not grown:
            return
        now = time.monotonic_ns()
        lost = [id for id in self._sensor.lost_inodes() if self._outbox.index.is_member(id)]
        for id in lost:
            self._outbox.table.mark(id, now).mark_whole()
        log.warning("the kernel dropped events (%s): %d files are read again", ", ".join(sorted(grown)), len(lost))
        if grown & NAMELESS_LOSSES:
            log.warning("it is not known of which files: all are compared with the replica")
            self._metrics.resyncs.add("events_lost")
            self._outbox.compare_all(now)

"""What the kernel says, into the outbox: names, byte ranges, and what it could not hand over.

Takes a sensor and, if that does not tell names, the names' queue; marks what is owed and what is to be looked at. Loss
widens what is looked at again.
"""

from __future__ import annotations

import logging
import time

import numpy as np

from replicator.capture.event import EventFlag, EventKind, Events
from replicator.capture.names import InodeLook, Names, Overflow, SlotLook
from replicator.capture.sensor import NAMELESS_LOSSES, Sensor
from replicator.dirty.merge import merge
from replicator.model import FileId, Slot
from replicator.observe.metrics import SenderMetrics
from replicator.source.outbox import Outbox

log = logging.getLogger(__name__)

_KINDS = {int(kind): kind.name.lower() for kind in EventKind}


_NAME, _MOVED = int(EventKind.NAME), int(EventFlag.MOVED)


class Intake:
    """What the kernel says of one source."""

    def __init__(self, sensor: Sensor, names: Names | None, outbox: Outbox, metrics: SenderMetrics) -> None:
        self._sensor = sensor
        self._names = names
        self._outbox = outbox
        self._metrics = metrics
        self._losses: dict[str, int] = {}

    def take_names(self, now: int) -> None:
        """Take what is in the names' queue now: looks for the resolver, attributes for the table."""
        if self._names is None:
            return
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
            if self._sensor.tells_names:
                names = self._sensor.names()
                if names:
                    named = records["kind"] == _NAME
                    self._take_named(records[named], names)
                    records = records[~named]
            merge(records, self._outbox.table, self._outbox.index.is_member, self._outbox.outsiders)
            self._sensor.advance()

    def _take_named(self, records: Events, names: list[bytes]) -> None:
        """Look at each name, and at those that a moved inode had before."""
        index, resolver = self._outbox.index, self._outbox.resolver
        for record, name in zip(records.tolist(), names, strict=True):
            ts, ino, off, length, root, _, gen, _, _, fs, flags, _ = record
            parent = FileId(fs, root, ino, gen)
            if flags & _MOVED:
                for slot in index.slots_of(FileId(fs, root, off, length & 0xFFFFFFFF)):
                    resolver.look(slot, ts)
            if not index.is_member(parent):
                continue
            self._outbox.table.mark(parent, ts)
            if name:
                resolver.look(Slot(parent, name), ts)
            else:
                resolver.list(parent, ts)

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
            if self._outbox.index.is_directory(id):
                self._outbox.resolver.list(id, now)
        log.warning("the kernel dropped events (%s): %d files are read again", ", ".join(sorted(grown)), len(lost))
        if grown & NAMELESS_LOSSES:
            log.warning("it is not known of which files: all are compared with the replica")
            self._metrics.resyncs.add("events_lost")
            self._outbox.compare_all(now)
            if self._sensor.tells_names:
                self._list_all(now)

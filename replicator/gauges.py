"""What the sender measures now and then, for its metrics; what is counted as it happens, is counted there.

Takes the sender's parts; sets gauges, and counters that follow one of somebody else. Driven by the loop.
"""

from __future__ import annotations

import math
import time

from replicator.capture.select import sensor_name
from replicator.capture.sensor import Sensor
from replicator.journal.journal import Journal
from replicator.keeper.hooks import Hooks
from replicator.ledger import Ledger
from replicator.observe.metrics import SenderMetrics
from replicator.source import figures
from replicator.source.outbox import Outbox
from replicator.uplink import Uplink

SECOND = 1_000_000_000


class Gauges:
    """One sender's."""

    def __init__(
        self,
        metrics: SenderMetrics,
        outbox: Outbox,
        sensor: Sensor,
        hooks: Hooks,
        ledger: Ledger,
        journal: Journal,
        uplink: Uplink,
    ) -> None:
        self._metrics = metrics
        self._outbox = outbox
        self._sensor = sensor
        self._ledger = ledger
        self._journal = journal
        self._uplink = uplink
        self._oldest = 0
        metrics.sensor.info({"sensor": sensor_name(sensor)})
        metrics.hooks_adopted.set(hooks.state()["adopted"])
        metrics.oldest_unreplicated.set_function(self.oldest_age)
        metrics.unsettled.set_function(lambda: outbox.pace.unsettled_count)

    def follow_wire(self) -> None:
        """Count the bytes on the wire: in each turn, so that who was made to wait finds them counted."""
        sent, received = self._uplink.wire_bytes
        self._metrics.wire_bytes.follow({"sent": sent, "received": received})

    def measure(self) -> None:
        """Everything else."""
        metrics, outbox, connection = self._metrics, self._outbox, self._uplink.connection
        metrics.journal_kept.set(0 if self._journal.trouble or self._ledger.trouble else 1)
        metrics.journal_bytes.set(self._journal.size)
        metrics.events_suppressed.follow(self._sensor.untold())
        metrics.connected.set(1 if connection is not None else 0)
        metrics.dirty_files.set(figures.dirty_files(outbox))
        metrics.dirty_bytes.set(figures.dirty_bytes(outbox))
        metrics.held_deletions.set(outbox.deletions.holding)
        metrics.held_files.set(len(outbox.pace.stuck()))
        metrics.inflight_epochs.set(len(outbox.epochs.inflight))
        metrics.scan_files.set(len(outbox.index))
        metrics.scan_running.set(0 if outbox.resolver.complete else 1)
        self._oldest = figures.oldest(outbox) or 0
        info = connection.transport.tcp_info() if connection is not None else None
        metrics.tcp_rtt.set(info.rtt_seconds if info else math.nan)
        metrics.tcp_unsent_bytes.set(info.unsent_bytes if info else 0)
        metrics.tcp_retransmits.follow(info.retransmits if info else 0)

    def oldest_age(self) -> float:
        """Seconds since the oldest change that is not durable on the replica; 0 if there is none."""
        return (time.monotonic_ns() - self._oldest) / SECOND if self._oldest else 0.0

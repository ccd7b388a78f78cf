"""Every metric of the two processes, declared once, with its help.

Takes numbers from the loops, gives a Prometheus registry each. All series exist from the start, so that an alert on a
rate or a zero works before anything has happened. A value that depends on the present ("how old is the oldest change
that is not replicated") is asked for when it is scraped: set its function with `set_function`; it is called in the
HTTP server's thread and must only read.
"""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Gauge, Info, ProcessCollector

from replicator import __version__
from replicator.observe.counter import Counter, LabelledCounter
from replicator.observe.histogram import Histogram
from replicator.verify.found import KINDS

EVENT_KINDS = ("write", "folio", "size", "tail", "attr", "whole", "name", "inode")
"""The record kinds of the kernel's ring, and what the names' channel says: a name or an inode to look at."""

DROP_CAUSES = ("ring_full", "recursion", "probe_missed", "names_overflow")
"""Why a record did not reach the sender. A sensor may know more causes; they appear when they happen."""

RESYNC_CAUSES = ("start", "gap", "names_overflow", "events_lost", "compare")
"""Why the tree, or all inodes, were gone through: a first start, a time without hooks, a full names' channel, lost
records, a replica that is not what it was believed to be."""


class _Side:
    """What both ends export."""

    def __init__(self, side: str) -> None:
        self.registry = CollectorRegistry()
        self.build = Info("rsyncfs_build", "The running version, and which end this is.", registry=self.registry)
        self.build.info({"version": __version__, "side": side})
        self.connected = self._gauge("rsyncfs_connected", "1 while a session with the other end is established.")
        self.sessions = self._counter("rsyncfs_sessions", "Sessions established with the other end.")
        self.wire_bytes = self._labelled(
            "rsyncfs_wire_bytes",
            "Bytes of the replication connection as counted at the socket, by direction (sent, received).",
            label="direction",
            values=("sent", "received"),
        )
        self.epochs = self._counter("rsyncfs_epochs", "Epochs that were applied (visible on the replica).")
        self.durable_epoch = self._gauge("rsyncfs_durable_epoch", "The newest epoch that would survive a power cut.")
        self.refusals = self._counter(
            "rsyncfs_refusals", "Changes that the replica could not make for now (disk full, quota, no permission)."
        )
        self.needs = self._counter("rsyncfs_needs", "Inodes that the receiver asked to be sent whole.")
        ProcessCollector(registry=self.registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(name, help_text, registry=self.registry)

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(name, help_text, self.registry)

    def _labelled(self, name: str, help_text: str, *, label: str, values: tuple[str, ...]) -> LabelledCounter:
        return LabelledCounter(name, help_text, self.registry, label=label, values=values)

    def _histogram(self, name: str, help_text: str) -> Histogram:
        return Histogram(name, help_text, self.registry)


class SenderMetrics(_Side):
    """What `rsyncfs send` exports."""

    def __init__(self) -> None:
        super().__init__("sender")
        self.lag_applied = self._histogram(
            "rsyncfs_lag_applied_seconds", "From the write in the kernel to the word that it is visible on the replica."
        )
        self.lag_durable = self._histogram(
            "rsyncfs_lag_durable_seconds",
            "From the write in the kernel to the word that it would survive a power cut of the replica.",
        )
        self.oldest_unreplicated = self._gauge(
            "rsyncfs_oldest_unreplicated_seconds",
            "Age of the oldest change that is not yet durable on the replica: how far back a failover would fall.",
        )
        self.dirty_bytes = self._gauge("rsyncfs_dirty_bytes", "Bytes changed and not yet durable on the replica.")
        self.dirty_files = self._gauge("rsyncfs_dirty_files", "Inodes changed and not yet durable on the replica.")
        self.held_files = self._gauge(
            "rsyncfs_held_files", "Inodes that cannot be replicated for now because the replica refuses them."
        )
        self.unsettled = self._gauge(
            "rsyncfs_unsettled_inodes", "Inodes to be told to the replica once more when quiet for 5 s."
        )
        self.held_deletions = self._gauge(
            "rsyncfs_held_deletions", "Names whose deletion the replica is not told, being too many (--max-delete)."
        )
        self.inflight_epochs = self._gauge("rsyncfs_inflight_epochs", "Epochs sent and not yet durable.")
        self.events = self._labelled(
            "rsyncfs_events", "Records received from the kernel, by kind.", label="kind", values=EVENT_KINDS
        )
        self.events_suppressed = self._counter(
            "rsyncfs_events_suppressed",
            "Writes that the kernel side did not tell, because what they changed was about to be read anyway.",
        )
        self.events_dropped = self._labelled(
            "rsyncfs_events_dropped",
            "Records that the kernel could not hand over, by cause. Each widens what is read again; none is forgotten.",
            label="cause",
            values=DROP_CAUSES,
        )
        self.data_bytes = self._counter("rsyncfs_data_bytes", "Bytes of file content sent.")
        self.resyncs = self._labelled(
            "rsyncfs_resyncs", "Walks of the tree or of a part of it, by cause.", label="cause", values=RESYNC_CAUSES
        )
        self.scan_running = self._gauge("rsyncfs_scan_running", "1 while the tree is being walked.")
        self.scan_files = self._gauge("rsyncfs_scan_files", "Inodes found by the walk that runs, or by the last one.")
        self.verify_differences = self._counter(
            "rsyncfs_verify_differences", "Differences that verify found where both sides should have been equal: bugs."
        )
        self.scrub_running = self._gauge("rsyncfs_scrub_running", "1 while a scrub compares both sides.")
        self.scrub_period = self._gauge(
            "rsyncfs_scrub_period_seconds", "Time from the end of a scrub to the next one; 0 if there are none."
        )
        self.scrub_ended = self._gauge(
            "rsyncfs_scrub_ended_time_seconds",
            "When the last scrub ended, or the first was asked for; 0 if neither.",
        )
        self.scrub_duration = self._gauge("rsyncfs_scrub_duration_seconds", "How long the last scrub took.")
        self.scrub_files = self._counter("rsyncfs_scrub_files", "Inodes that scrubs compared.")
        self.scrub_bytes = self._counter("rsyncfs_scrub_bytes", "Bytes of content that scrubs compared.")
        self.scrub_unsettled = self._gauge(
            "rsyncfs_scrub_unsettled_files",
            "Inodes that the last scrub could not judge: they were being written.",
        )
        self.scrub_findings = self._labelled(
            "rsyncfs_scrub_findings",
            "Differences that scrubs found where both sides should have been equal, by kind. They are mended.",
            label="kind",
            values=KINDS,
        )
        self.tcp_rtt = self._gauge(
            "rsyncfs_tcp_rtt_seconds", "Smoothed round-trip time of the replication connection; NaN without one."
        )
        self.tcp_rtt.set(math.nan)
        self.tcp_retransmits = self._counter(
            "rsyncfs_tcp_retransmits", "Segments of the replication connection that were sent again."
        )
        self.tcp_unsent_bytes = self._gauge(
            "rsyncfs_tcp_unsent_bytes", "Bytes handed to the kernel that the network has not taken yet."
        )
        self.journal_kept = self._gauge(
            "rsyncfs_journal_kept",
            "0 if the state directory takes no journal or index: a restart now would be a survey.",
        )
        self.journal_bytes = self._gauge("rsyncfs_journal_bytes", "Size of the journal.")
        self.hooks_adopted = self._gauge(
            "rsyncfs_hooks_adopted", "1 if the hooks of the sender before were taken over: it missed nothing meanwhile."
        )
        self.sensor = Info("rsyncfs_sensor", "How writes are seen (tracepoint, vfs).", registry=self.registry)
        self.sensor.info({"sensor": "none"})


class ReceiverMetrics(_Side):
    """What `rsyncfs receive` exports."""

    def __init__(self) -> None:
        super().__init__("receiver")
        self.applied_bytes = self._counter("rsyncfs_applied_bytes", "Bytes of file content written into the replica.")
        self.sync_seconds = self._histogram(
            "rsyncfs_sync_seconds", "Time that it took to make applied epochs durable (syncfs and the inventory)."
        )
        self.epoch_open = self._gauge(
            "rsyncfs_epoch_open", "1 while the replica holds a part of an epoch: it is incomplete until the rest comes."
        )
        self.limbo_files = self._gauge("rsyncfs_limbo_files", "Inodes that are kept without a name of the user's.")

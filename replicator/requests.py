"""What `wait`, `status` and `verify` ask of a running sender."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from replicator import __version__
from replicator.capture.select import sensor_name
from replicator.observe.control import Caller
from replicator.observe.log import printable
from replicator.source import figures
from replicator.source.backlog import writers
from replicator.verify.verification import Verification

if TYPE_CHECKING:
    from replicator.sender import Sender

WRITERS = 20
"""Writers of the backlog that `status` tells."""


class Requests:
    """Answers callers of the control socket."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._verification: Verification | None = None
        self._verifications: deque[Callable[[], Verification]] = deque()

    def handle(self, caller: Caller, request: dict[str, Any]) -> None:
        """One request; the answer may come later."""
        match request.get("op"):
            case "wait":
                self._wait(caller)
            case "status":
                caller.answer(self._status())
            case "verify":
                self._verify(caller, repair=request.get("repair") is True)
            case _:
                caller.answer({"error": "this version does not know that request"})

    def _wait(self, caller: Caller) -> None:
        sender = self._sender
        started = time.monotonic()
        sender.barriers.add(
            sender.sensor.produced(),
            sender.turn,
            lambda: caller.answer({"seconds": time.monotonic() - started}),
        )

    @property
    def busy(self) -> bool:
        """Whether `turn` has something to do."""
        return self._verification is not None

    def turn(self) -> None:
        """Go on with what takes longer than a turn of the loop."""
        if self._verification is not None:
            self._verification.turn()

    def _verify(self, caller: Caller, *, repair: bool) -> None:
        self._verifications.append(lambda: Verification(self._sender, caller, self._verified, repair=repair))
        if self._verification is None:
            self._verified()

    def _verified(self) -> None:
        """One after the other."""
        self._verification = self._verifications.popleft()() if self._verifications else None

    def _status(self) -> dict[str, Any]:
        sender, outbox = self._sender, self._sender.outbox
        applied, durable = (
            {"p50": 1e3 * h.quantile(0.5), "p99": 1e3 * h.quantile(0.99), "max": 1e3 * h.largest}
            for h in (sender.metrics.lag_applied.snapshot(), sender.metrics.lag_durable.snapshot())
        )
        sent, received = sender.uplink.wire_bytes
        stuck = outbox.pace.stuck()
        backlog, estimated = writers(outbox, WRITERS)
        return {
            "role": "sender",
            "version": __version__,
            "source": printable(sender.source.path),
            "filesystem": sender.source.fstype,
            "receiver": str(sender.options.address),
            "phase": sender.phases.current,
            "excluded": [printable(path) for path in sender.own.paths()],
            "connected": sender.uplink.connection is not None,
            "waiting_for": sender.uplink.waiting_for,
            "sensor": sensor_name(sender.sensor),
            "hooks": sender.hooks.state(),
            "state_trouble": sender.journal.trouble or sender.ledger.trouble,
            "files": len(sender.index),
            "dirty_files": figures.dirty_files(outbox),
            "dirty_bytes": figures.dirty_bytes(outbox),
            "writers": backlog,
            "writers_estimated": estimated,
            "oldest_unreplicated_seconds": sender.gauges.oldest_age(),
            "epochs_in_flight": len(outbox.epochs.inflight),
            "durable_epoch": sender.ledger.durable,
            "lag_applied_ms": applied,
            "lag_durable_ms": durable,
            "wire_bytes": {"sent": sent, "received": received},
            "events": int(sender.metrics.events.total()),
            "events_suppressed": sender.sensor.untold(),
            "data_bytes": int(sender.metrics.data_bytes.value),
            "losses": sender.sensor.losses(),
            "resyncs": int(sender.metrics.resyncs.total()),
            "doubted_files": len(outbox.doubts),
            "unsettled_files": outbox.pace.unsettled_count,
            "scrub": sender.scrub.status() if sender.scrub is not None else None,
            "refused": [sender.describe(id) for id in stuck[:100]],
            "refused_files": len(stuck),
            "held_deletions": outbox.deletions.holding,
            "max_delete": outbox.deletions.limit,
        }

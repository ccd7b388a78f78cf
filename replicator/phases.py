"""How far a sender is with its replica: connecting, scanning, sending, ready; and back, when all must be compared.

*Scanning* lasts until all that the source has is known, *sending* until that is durable on the replica and what only
the replica has is dealt with. Takes new sessions, and sees when nothing is left to be looked at; begins what the next
phase is for. Driven by the loop, in each turn after epochs were sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from replicator.catchup import Catchup
from replicator.comparison import Comparison
from replicator.journal.journal import Journal
from replicator.ledger import Ledger
from replicator.observe.metrics import SenderMetrics
from replicator.source.outbox import Outbox

log = logging.getLogger(__name__)


class Phases:
    """One sender's."""

    def __init__(
        self,
        outbox: Outbox,
        ledger: Ledger,
        journal: Journal,
        catchup: Catchup,
        comparison: Comparison,
        metrics: SenderMetrics,
        barrier: Callable[[Callable[[], None]], None],
        connected: Callable[[], bool],
        ready: Callable[[], None],
    ) -> None:
        """`barrier(passed)` calls back once what is owed now is durable; `ready` is called whenever it is reached.

        `connected`: whether there is a session.
        """
        self._outbox = outbox
        self._ledger = ledger
        self._journal = journal
        self._catchup = catchup
        self._comparison = comparison
        self._metrics = metrics
        self._barrier = barrier
        self._connected = connected
        self._in_sync = ready
        self._sweeping = False
        self.current = "connecting"

    @property
    def connecting(self) -> bool:
        """Whether it is not known yet what the replica is: nothing is looked at or read."""
        return self.current == "connecting"

    @property
    def scanned(self) -> bool:
        """Whether all that the source has is known."""
        return self.current in ("sending", "ready")

    @property
    def ready(self) -> bool:
        """Whether the replica has all of it, and nothing else."""
        return self.current == "ready"

    def take_up(self) -> None:
        """Go on where a predecessor ended: the index is known."""
        self.current = "scanning"

    def begun(self, now: int, *, empty: bool, changed: bool) -> None:
        """A session has begun, with a replica that has nothing (`empty`) or is not what it was left as (`changed`)."""
        if self.connecting:
            self._outbox.checking = not empty
            self._metrics.resyncs.add("start")
            self._outbox.start(now)
            self.current = "scanning"
        elif changed or (self._ledger.mistrusted and not self._sweeping):
            log.warning("the replica is not in the state that it was left in: comparing everything")
            self._metrics.resyncs.add("compare")
            self._ledger.mistrust()
            self._sweeping = True
            self._outbox.checking = True
            self._catchup.sweep()
            self.current = "scanning"

    def turn(self, now: int) -> None:
        """Go on, if what the phase is for is done."""
        resolver = self._outbox.resolver
        known = self.current == "scanning" and not resolver.workable and not self._catchup.busy
        if known and self._connected():  # what is to be asked of the replica would be asked in vain
            resolver.complete = True
            for id in self._outbox.index.nameless():  # whoever was to be found has been found
                resolver.doubt(id, now)
            self.current = "sending"
            self._barrier(self._sent)

    def _sent(self) -> None:
        """Everything that the source has is on the replica: now what only the replica has."""
        if self._outbox.checking:
            self._comparison.start(self._compared)
        elif self._ledger.known:
            self._comparison.nameless(self._compared)
        else:
            self._arrive()

    def _compared(self, complete: bool) -> None:
        if complete:
            self._ledger.trust()
            self._sweeping = False
            self._arrive()
        else:
            self.current = "scanning"

    def _arrive(self) -> None:
        self.current = "ready"
        self._outbox.succeeding = False
        if not self._ledger.known:
            self._ledger.scanned()
            self._journal.begin(time.monotonic_ns(), anew=True)
        self._in_sync()

"""The receiver: one loop that owns a replica.

Takes options; runs until it is told to stop. It listens, lets one sender in, applies its epochs as they come and makes
them durable in a worker thread meanwhile. It trusts no peer: whatever breaks the protocol ends that connection.

    downlink   who has connected, and which of them is the session
    admission  whether a sender is let in
    mirror     the replica: what an epoch makes of it (mirror/)
    syncing    when that is made durable
    answers    what the sender asks between epochs
"""

from __future__ import annotations

import logging
import selectors
import time
from contextlib import ExitStack

from replicator import __version__
from replicator.admission import objection, welcome
from replicator.answers import NAMELESS, Answers
from replicator.config import ReceiveOptions
from replicator.downlink import Downlink
from replicator.errors import EnvironmentFault, RefusedError
from replicator.link import message as m
from replicator.link.address import resolve
from replicator.link.connection import Connection, Heard
from replicator.link.epoch import Epoch
from replicator.link.tls import require_tls, server_context
from replicator.mirror.mirror import Mirror
from replicator.model import Refusal
from replicator.observe.control import Caller, ControlServer
from replicator.observe.log import Seldom, printable
from replicator.observe.metrics import ReceiverMetrics
from replicator.syncing import Syncing
from replicator.work import Worker

log = logging.getLogger(__name__)

TICK = 0.5  # s
IDLE = 4.0
"""Seconds between ticks when nothing happens."""


class Receiver:
    """One replica. `run` returns when `stop` was called."""

    def __init__(self, options: ReceiveOptions) -> None:
        """Open the replica and listen; EnvironmentFault or UsageError if something is missing."""
        self._stopping = False
        self._stack = ExitStack()
        try:
            self._open(options)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, options: ReceiveOptions) -> None:
        defer = self._stack.callback
        self.options = options
        tls = server_context(options.tls) if options.tls else None
        require_tls(options.listen, resolve(options.listen), tls)
        self.mirror = Mirror.open(options.root, options.state, options.adopt)
        defer(self.mirror.close)
        self.metrics = ReceiverMetrics()
        self.selector = selectors.DefaultSelector()
        defer(self.selector.close)
        self._comparer = Worker()
        defer(self._comparer.close)
        self._answers = Answers(self.mirror, self._comparer)
        self.downlink = Downlink(options.listen, tls, self.selector, self._heard)
        defer(self.downlink.close)
        self.control = ControlServer(options.state, self.selector, self._request)
        defer(self.control.close)
        self.syncing = Syncing(self.mirror, options.root, self.metrics, self._durable, self._lost)
        defer(self.syncing.close)
        for watched in (self._comparer, self.syncing):
            self.selector.register(watched.fileno(), selectors.EVENT_READ, watched)
        self._sender: tuple[str, int] | None = None
        self._peer = ""
        self._refused = Seldom()
        self._ticked = 0.0
        self._interval = TICK
        self._seen: Connection | None = None

    # ------------------------------------------------------------------ the loop

    def stop(self) -> None:
        """End `run` after this turn."""
        self._stopping = True

    def run(self) -> None:
        """Serve until `stop`. EnvironmentFault if the replica's directory goes."""
        while not self._stopping:
            for key, events in self.selector.select(self.syncing.patience(self._interval)):
                if isinstance(key.data, Connection | Downlink):
                    self.downlink.ready(key.data)
                elif isinstance(key.data, ControlServer) or hasattr(key.data, "caller"):
                    self.control.ready(key, events)
            self._comparer.collect()
            self.syncing.turn()
            self._tick()
            self.downlink.retune()
            sent, received = self.downlink.wire_bytes
            self.metrics.wire_bytes.follow({"sent": sent, "received": received})
            self.control.retune()
        self.downlink.drop_all("the receiver stops")

    def close(self) -> None:
        """Make durable what was applied, and give everything back."""
        try:
            self.syncing.finish()
        finally:
            self._stack.close()

    def _tick(self) -> None:
        session = self.downlink.session
        if self.syncing.busy or session is not self._seen or session is None:
            self._seen, self._interval = session, TICK
        if time.monotonic() - self._ticked < self._interval:
            return
        self._interval = min(2 * self._interval, IDLE)
        self._ticked = time.monotonic()
        if not self.mirror.still_there():
            raise EnvironmentFault(
                f"the replica {self.options.root} is not what it was: unmounted, replaced or removed; nothing was"
                " deleted; mount it again and start the receiver"
            )
        self.downlink.beat()
        self.metrics.connected.set(1 if self.downlink.session is not None else 0)
        self.metrics.limbo_files.set(len(self.mirror.inspection.nameless(NAMELESS)))
        self.metrics.epoch_open.set(1 if self.mirror.open_epoch else 0)

    # ------------------------------------------------------------------ the sender

    def _heard(self, connection: Connection, heard: Heard) -> None:
        match heard:
            case m.Hello() if not connection.session.closed:  # else it said goodbye in the same breath
                self._greet(connection, heard)
            case Epoch() if connection is self.downlink.session:
                self._apply(connection, heard)
            case m.Check(request, body) if connection is self.downlink.session:
                self._answers.answer(body, lambda answer: self._answer(connection, m.Checked(request, answer)))
            case m.Bye(reason):
                self.downlink.end(connection, f"the sender said goodbye: {reason}", logging.INFO)
            case _:
                return

    def _greet(self, connection: Connection, hello: m.Hello) -> None:
        sender, session = (hello.source, hello.instance), self.downlink.session
        busy = session is not None and self._sender != sender
        refusal = objection(hello, self.mirror, self.options.root, busy=busy, sick=self.syncing.sick)
        if refusal is None:
            self._sender = sender
            if session is not None:
                self.downlink.drop(session, "the sender connected anew")
            try:
                self.mirror.begin(hello.source, hello.root, hello.instance)
            except RefusedError as error:
                refusal = m.Refuse("foreign-root", str(error), permanent=True)
        if refusal is not None:
            log.warning("refused %s: %s", connection.transport.peer, refusal.reason)
            connection.say(refusal)
            self.downlink.drop(connection, None)
            return
        self.downlink.admit(connection)
        self._peer = connection.transport.peer
        self._answers.begin()
        connection.say(welcome(self.mirror))
        self.metrics.sessions.add()
        log.info("%s replicates from %s", printable(hello.hostname), self._peer)

    def _apply(self, connection: Connection, epoch: Epoch) -> None:
        answer = self.mirror.apply(epoch.facts, [(at, offset, memoryview(data)) for at, offset, data in epoch.payload])
        connection.say(m.Applied(answer))
        self.syncing.owe(epoch.facts.epoch)
        self.metrics.epochs.add()
        self.metrics.applied_bytes.add(sum(len(data) for _, _, data in epoch.payload))
        self.metrics.needs.add(len(answer.needs))
        self._log_refusals(answer.refusals)

    def _answer(self, connection: Connection, answer: m.Checked) -> None:
        if connection is self.downlink.session:
            self.downlink.say(answer)

    def _durable(self, before: int, number: int, lost: tuple[Refusal, ...]) -> None:
        if lost:
            self._log_refusals(lost)
        session = self.downlink.session
        if session is not None and number > max(before, session.session.durable) and number <= session.session.applied:
            self.downlink.say(m.Durable(number, lost))

    def _lost(self, why: str) -> None:
        """What was written may be lost, so all that is not durable must come again: the sender's to know."""
        if self.downlink.session is not None:
            self.downlink.drop(self.downlink.session, why)

    def _log_refusals(self, refusals: tuple[Refusal, ...]) -> None:
        self.metrics.refusals.add(len(refusals))
        number = self._refused.count(len(refusals))
        if number:
            more = f" (and {number - 1} more)" if number > 1 else ""
            log.error("cannot apply %s: %s%s", refusals[0].id.text(), refusals[0].reason, more)

    # ------------------------------------------------------------------ status

    def _request(self, caller: Caller, request: dict[str, object]) -> None:
        if request.get("op") != "status":
            caller.answer({"error": "ask the sender: this is the receiver's state directory"})
            return
        open_epoch = self.mirror.open_epoch
        caller.answer(
            {
                "role": "receiver",
                "version": __version__,
                "replica": printable(self.options.root),
                "identity": self.mirror.identity,
                "connected": self.downlink.session is not None,
                "sender": self._peer if self.downlink.session is not None else "",
                "durable_epoch": self.mirror.durable_epoch,
                "open_epoch": open_epoch,
                "state": f"incomplete, epoch {open_epoch} open" if open_epoch else "complete",
                "trouble": self.mirror.trouble or "",
            }
        )

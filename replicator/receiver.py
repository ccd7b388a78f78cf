"""The receiver: one loop that owns a replica.

Takes options; runs until it is told to stop. It listens, lets one sender in, applies its epochs as they come and makes
them durable in a worker thread meanwhile. It trusts no peer: whatever breaks the protocol ends that connection.
"""

from __future__ import annotations

import logging
import selectors
import time
from contextlib import ExitStack

from replicator import __version__
from replicator.answers import NAMELESS, Answers
from replicator.config import ReceiveOptions
from replicator.errors import EnvironmentFault, RefusedError, RemoteError
from replicator.host import ancestors, boot_id, nested
from replicator.link import message as m
from replicator.link.address import resolve
from replicator.link.connection import Connection, Heard, LinkLost, Party
from replicator.link.epoch import Epoch
from replicator.link.sockets import accept, listen
from replicator.link.tls import require_tls, server_context
from replicator.mirror.durability import SyncJob
from replicator.mirror.mirror import Mirror
from replicator.model import Refusal
from replicator.observe.control import Caller, ControlServer
from replicator.observe.log import Seldom, printable
from replicator.observe.metrics import ReceiverMetrics
from replicator.work import Worker

log = logging.getLogger(__name__)

GREETERS = 32
"""Connections that may be under way to a greeting at once."""
TICK = 0.5  # s


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
        self._tls = server_context(options.tls) if options.tls else None
        require_tls(options.listen, resolve(options.listen), self._tls)
        self.mirror = Mirror.open(options.root, options.state, options.adopt)
        defer(self.mirror.close)
        self.metrics = ReceiverMetrics()
        self.selector = selectors.DefaultSelector()
        defer(self.selector.close)
        self._comparer = Worker()
        defer(self._comparer.close)
        self.selector.register(self._comparer.fileno(), selectors.EVENT_READ, self._comparer)
        self._answers = Answers(self.mirror, self._comparer)
        self.listener = listen(options.listen)
        defer(self.listener.close)
        self.selector.register(self.listener, selectors.EVENT_READ, self.listener)
        self.control = ControlServer(options.state, self.selector, self._request)
        defer(self.control.close)
        self._syncer = Worker()
        self._syncing = False
        defer(self._syncer.close)
        self.selector.register(self._syncer.fileno(), selectors.EVENT_READ, self._syncer)
        self._greeters: set[Connection] = set()
        self._session: Connection | None = None
        self._sender: tuple[str, int] | None = None
        self._peer = ""
        self._interests: dict[Connection, int] = {}
        self._refused = Seldom()
        self._unsynced = 0
        self._sick: str | None = None
        """Why nothing that is taken would be durable: no sender is let in before the disk can be synced again."""
        self._unsyncable = Seldom(10.0)
        self._next_sync = 0.0
        self._bytes = [0, 0]
        self._ticked = 0.0

    # ------------------------------------------------------------------ the loop

    def stop(self) -> None:
        """End `run` after this turn."""
        self._stopping = True

    def run(self) -> None:
        """Serve until `stop`. EnvironmentFault if the replica's directory goes."""
        while not self._stopping:
            for key, events in self.selector.select(self._patience()):
                if key.data is self.listener:
                    self._accept()
                elif isinstance(key.data, Connection):
                    self._serve(key.data)
                elif isinstance(key.data, ControlServer) or hasattr(key.data, "caller"):
                    self.control.ready(key, events)
            self._syncer.collect()
            self._comparer.collect()
            self._start_sync()
            self._tick()
            for connection in list(self._interests):
                self._retune(connection)
            self._count_bytes()
            self.control.retune()
        for connection in list(self._interests):
            self._drop(connection, "the receiver stops")

    def close(self) -> None:
        """Make durable what was applied, and give everything back."""
        try:
            self._syncer.join()
            self._syncer.collect()
        finally:
            self._stack.close()

    def _patience(self) -> float:
        if self._unsynced and not self._syncing:
            return max(0.0, min(TICK, self._next_sync - time.monotonic()))
        return TICK

    # ------------------------------------------------------------------ connections

    def _accept(self) -> None:
        try:
            transport = accept(self.listener, self._tls)
        except EnvironmentFault as error:
            log.error("%s", error)
            return
        if transport is None:
            return
        connection = Connection(transport, Party.RECEIVER)
        self._interests[connection] = connection.interest()
        self.selector.register(connection.fileno(), self._interests[connection], connection)
        self._greeters.add(connection)
        if len(self._greeters) > GREETERS:
            self._drop(next(iter(self._greeters)), None)

    def _serve(self, connection: Connection) -> None:
        try:
            connection.flush()
            for heard in connection.hear():
                self._heard(connection, heard)
                if connection not in self._interests:
                    return
        except (LinkLost, RefusedError) as error:
            self._ended(connection, str(error), logging.INFO)
        except RemoteError as error:
            self._ended(connection, str(error), logging.WARNING)
            self._drop(connection, str(error))

    def _heard(self, connection: Connection, heard: Heard) -> None:
        match heard:
            case m.Hello() if not connection.session.closed:  # else it said goodbye in the same breath
                self._greet(connection, heard)
            case Epoch(facts, _) if connection is self._session:
                self._apply(connection, facts.epoch, heard)
            case m.Check(request, body) if connection is self._session:
                self._answers.answer(body, lambda answer: self._answer(connection, m.Checked(request, answer)))
            case m.Bye(reason):
                self._ended(connection, f"the sender said goodbye: {reason}", logging.INFO)
            case _:
                return

    def _answer(self, connection: Connection, answer: m.Checked) -> None:
        if connection is self._session:
            try:
                connection.say(answer)
            except (LinkLost, RemoteError) as lost:
                self._ended(connection, str(lost), logging.INFO)

    def _apply(self, connection: Connection, number: int, epoch: Epoch) -> None:
        answer = self.mirror.apply(epoch.facts, [(at, offset, memoryview(data)) for at, offset, data in epoch.payload])
        connection.say(m.Applied(answer))
        self._unsynced = number
        self.metrics.epochs.add()
        self.metrics.applied_bytes.add(sum(len(data) for _, _, data in epoch.payload))
        self.metrics.needs.add(len(answer.needs))
        self._log_refusals(answer.refusals)

    def _log_refusals(self, refusals: tuple[Refusal, ...]) -> None:
        self.metrics.refusals.add(len(refusals))
        number = self._refused.count(len(refusals))
        if number:
            more = f" (and {number - 1} more)" if number > 1 else ""
            log.error("cannot apply %s: %s%s", refusals[0].id.text(), refusals[0].reason, more)

    def _greet(self, connection: Connection, hello: m.Hello) -> None:
        refusal = self._objection(hello)
        if refusal is not None:
            log.warning("refused %s: %s", connection.transport.peer, refusal.reason)
            connection.say(refusal)
            self._drop(connection, None)
            return
        if self._session is not None:
            self._drop(self._session, "the sender connected anew")
        self._greeters.discard(connection)
        try:
            self.mirror.begin(hello.source, hello.root, hello.instance)
        except RefusedError as error:
            log.warning("refused %s: %s", connection.transport.peer, error)
            connection.say(m.Refuse("foreign-root", str(error), permanent=True))
            self._drop(connection, None)
            return
        self._session, self._peer = connection, connection.transport.peer
        self._answers.begin()
        connection.say(
            m.Welcome(
                replica=self.mirror.identity,
                empty=self.mirror.empty,
                instance=self.mirror.instance,
                durable=self.mirror.durable_epoch,
                open=self.mirror.open_epoch or 0,
                software=__version__,
            )
        )
        self.metrics.sessions.add()
        log.info("%s replicates from %s", printable(hello.hostname), self._peer)

    def _objection(self, hello: m.Hello) -> m.Refuse | None:
        if not hello.source:
            return m.Refuse(
                "version",
                f"the sender speaks protocol versions {hello.oldest} to {hello.newest}, this receiver"
                f" {m.OLDEST_PROTOCOL} to {m.PROTOCOL}: bring both hosts to the same version of rsyncfs",
                permanent=True,
            )
        if self.mirror.source not in (None, hello.source):
            return m.Refuse(
                "other-source",
                f"the replica {self.options.root} belongs to another source: give each source a replica of its own, or"
                " start the receiver with --adopt and an empty state directory",
                permanent=True,
            )
        if self._session is not None and self._sender != (hello.source, hello.instance):
            return m.Refuse("busy", f"the replica {self.options.root} is being fed by another sender", permanent=False)
        local = hello.boot_id == boot_id() and hello.ancestors
        if local and nested(hello.ancestors, ancestors(self.options.root)):
            return m.Refuse(
                "nested",
                f"the source and the replica {self.options.root} lie one inside the other: choose directories that do"
                " not",
                permanent=True,
            )
        if self._sick is not None:
            return m.Refuse("sick", self._sick, permanent=False)
        if not self.mirror.still_there():
            return m.Refuse("root-gone", f"the replica {self.options.root} is not what it was", permanent=False)
        self._sender = (hello.source, hello.instance)
        return None

    def _ended(self, connection: Connection, reason: str, level: int) -> None:
        log.log(level, "%s: %s", connection.transport.peer, reason)
        self._drop(connection, None)

    def _drop(self, connection: Connection, reason: str | None) -> None:
        """Hang up, with a word if there is one."""
        if self._interests.pop(connection, None) is None:
            return
        self.selector.unregister(connection.fileno())
        self._greeters.discard(connection)
        if connection is self._session:
            self._session = None
        connection.close(reason)
        self._bytes[0] += connection.transport.bytes_out
        self._bytes[1] += connection.transport.bytes_in

    def _retune(self, connection: Connection) -> None:
        try:
            connection.flush()
        except (LinkLost, RemoteError, RefusedError) as error:
            self._ended(connection, str(error), logging.INFO)
            return
        interest = connection.interest()
        if interest != self._interests[connection]:
            self.selector.modify(connection.fileno(), interest, connection)
            self._interests[connection] = interest

    # ------------------------------------------------------------------ durability

    def _start_sync(self) -> None:
        if self._unsynced and not self._syncing and time.monotonic() >= self._next_sync:
            self._unsynced, self._syncing = 0, True
            job = self.mirror.start_sync()
            self._syncer.submit(lambda: _timed(job), self._synced)

    def _synced(self, done: tuple[SyncJob, float] | Exception) -> None:
        self._syncing = False
        if isinstance(done, Exception):
            raise done
        job, seconds = done
        # As long a pause as it took: a disk that is slow to sync is not asked all the time.
        self._next_sync = time.monotonic() + min(1.0, seconds)
        self.metrics.sync_seconds.observe(seconds)
        before = self.mirror.durable_epoch
        number, lost = self.mirror.finish_sync(job)
        if job.error is not None:
            self._failed_sync(job)
        elif self._sick is not None:
            log.warning("%s can be synced again", self.options.root)
            self._sick = None
        if lost:
            self._log_refusals(lost)
        self.metrics.durable_epoch.set(number)
        session = self._session
        if session is not None and number > max(before, session.session.durable) and number <= session.session.applied:
            try:
                session.say(m.Durable(number, lost))
            except (LinkLost, RemoteError) as error:
                self._ended(session, str(error), logging.INFO)

    def _failed_sync(self, job: SyncJob) -> None:
        trouble = self.mirror.trouble or ""
        if self._unsyncable.count(1):
            log.error("%s; trying again", trouble)
        self._unsynced = self._unsynced or max(job.epoch, 1)
        self._next_sync = time.monotonic() + 1.0
        if job.failed:
            # What was written may be lost, so all that is not durable must come again: the sender's to know.
            self._sick = trouble
            if self._session is not None:
                self._drop(self._session, trouble)

    def _tick(self) -> None:
        if time.monotonic() - self._ticked < TICK:
            return
        self._ticked = time.monotonic()
        if not self.mirror.still_there():
            raise EnvironmentFault(
                f"the replica {self.options.root} is not what it was: unmounted, replaced or removed; nothing was"
                " deleted; mount it again and start the receiver"
            )
        for connection in list(self._interests):
            try:
                connection.beat()
            except (LinkLost, RemoteError, RefusedError) as error:
                self._ended(connection, str(error), logging.INFO)
        self.metrics.connected.set(1 if self._session is not None else 0)
        self.metrics.limbo_files.set(len(self.mirror.nameless(NAMELESS)))
        self.metrics.epoch_open.set(1 if self.mirror.open_epoch else 0)

    def _count_bytes(self) -> None:
        sent, received = self._bytes
        for connection in self._interests:
            sent += connection.transport.bytes_out
            received += connection.transport.bytes_in
        self.metrics.wire_bytes.follow({"sent": sent, "received": received})

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
                "connected": self._session is not None,
                "sender": self._peer if self._session is not None else "",
                "durable_epoch": self.mirror.durable_epoch,
                "open_epoch": open_epoch,
                "state": f"incomplete, epoch {open_epoch} open" if open_epoch else "complete",
                "trouble": self.mirror.trouble or "",
            }
        )


def _timed(job: SyncJob) -> tuple[SyncJob, float]:
    """Run a job; with the seconds that it took."""
    started = time.monotonic()
    job()
    return job, time.monotonic() - started

"""The sender: one loop that owns all state of one source.

Takes options; runs until it is told to stop. Each turn it drains the names' queue and the ring, looks at what changed,
takes finished reads, hears the receiver, starts reads and sends epochs. Nothing in a turn blocks but looking at names.
"""

from __future__ import annotations

import logging
import math
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from replicator import __version__, syscalls
from replicator.attribution.cgroups import Cgroups
from replicator.attribution.processes import command_of
from replicator.barrier import Barriers
from replicator.blockwise import Blockwise
from replicator.capture.names import ListLook, Names, Overflow, SlotLook
from replicator.capture.probe import limits
from replicator.capture.select import select_sensor, sensor_name
from replicator.capture.sensor import Sensor
from replicator.capture.tracepoint import MODIFY
from replicator.catchup import Catchup
from replicator.comparison import Comparison
from replicator.config import SendOptions
from replicator.dirty.writers import Writers
from replicator.errors import EnvironmentFault, RemoteError
from replicator.host import ancestors, boot_id, is_within
from replicator.intake import Intake
from replicator.journal.marks import Doubt, Mark, Whole
from replicator.keeper.hooks import Hooks
from replicator.ledger import Ledger
from replicator.link import message as m
from replicator.link.connection import LinkLost
from replicator.link.tls import client_context
from replicator.model import FileId, Refusal, Slot
from replicator.observe.control import ControlServer
from replicator.observe.log import Seldom, printable
from replicator.observe.metrics import SenderMetrics
from replicator.progress import Progress
from replicator.reading import CALM, Reading
from replicator.requests import Requests
from replicator.source import figures, snapshot
from replicator.source.look import SourceNamespace
from replicator.source.outbox import Outbox
from replicator.state import StateDirectory
from replicator.tree.exclude import Exclude
from replicator.tree.handles import SourceRoot
from replicator.tree.own import own_directories
from replicator.uplink import Uplink
from replicator.verify.scrub import Scrub
from replicator.work import Worker

log = logging.getLogger(__name__)

UNAPPLIED = 4
"""Epochs sent and not yet visible on the replica: while there are so many, what changes is gathered into the next."""
BACKLOG = 16_384
"""Dirty inodes above which the first scan pauses."""
LOOKS = 512
HOUSEKEEPING = 0.25  # s
MARKS = 60
"""Seconds between marks that shorten a survey (btrfs)."""
SECOND = 1_000_000_000


class Sender:
    """One source, one receiver. `run` returns when `stop` was called."""

    def __init__(self, options: SendOptions, ready: Callable[[], None]) -> None:
        """Attach everything; EnvironmentFault or UsageError if something is missing. `ready` is called once in sync."""
        self._ready = ready
        self._told_ready = False
        self._stopping = False
        self._stack = ExitStack()
        try:
            self._open(options)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, options: SendOptions) -> None:
        defer = self._stack.callback
        self.options = options
        tls = client_context(options.tls) if options.tls else None
        exclude = self.exclude = Exclude(options.exclude)
        self.state = StateDirectory.open(options.state)
        defer(self.state.close)
        self.identity = self.state.identity()
        self.source = SourceRoot.open(options.source)
        defer(self.source.close)
        self.ledger = Ledger(self.state.path, {"root": self.source.id.text(), "exclude": options.exclude})
        defer(self.ledger.close)
        self._exclude_own()
        self.metrics = SenderMetrics()
        self.hooks = Hooks.open(options.state, self.source, detach=options.detach_hooks)
        defer(self.hooks.close)
        sensor = select_sensor(
            options.sensor,
            self.source.fstype,
            ring_bytes=options.ring_bytes,
            lost_inodes=options.lost_inodes,
            keeping=self.hooks.keeping,
        )
        defer(sensor.close)
        sensor.attach(self.source)
        self.hooks.tell(sensor)
        self.sensor: Sensor = sensor
        self.metrics.sensor.info({"sensor": sensor_name(self.sensor)})
        coverage = self.sensor.coverage()
        for limit in limits(self.source.fstype, coverage, dax=self.source.dax):
            log.warning("%s", limit)
        for item in coverage:
            if item.refused:
                log.warning(
                    "%s is not hooked: %s; what others do not tell of it is seen late", item.mechanism, item.reason
                )
        modify = any(item.mechanism == MODIFY for item in coverage)
        names = None
        if not sensor.tells_names:
            names = Names(self.source, modify=modify, store=self.hooks.store, adopt=sensor.adopted)
            defer(names.close)
            self.hooks.tell_names(names)
        self.metrics.hooks_adopted.set(self.hooks.state()["adopted"])
        # Pages that were dirty before the hooks were attached stay silent until they are clean.
        if not sensor.adopted:
            syscalls.syncfs(self.source.read_fd)
        self._gap = not sensor.adopted or not (names is None or names.adopted)
        cgroups = Cgroups()
        defer(cgroups.close)
        self.outbox = Outbox(
            self.source.id,
            exclude,
            writers=Writers(command_of, cgroups.path),
            index=self.ledger.index(self.source.id),
            last_epoch=self.ledger.last_epoch,
            max_delete=options.max_delete,
        )
        self.resolver, self.index, self.table = self.outbox.resolver, self.outbox.index, self.outbox.table
        self.catchup = Catchup(self.source, self.ledger.store, self.outbox, options.scan)
        defer(self.catchup.close)
        self.journal = self.ledger.journal(self.outbox, self._owed, self.hooks.forsake)
        self.intake = Intake(self.sensor, names, self.outbox, self.metrics, self.journal, self._survey)
        self.intake.fence()
        self.comparison = Comparison(self.outbox, self.ask, self._barrier)
        self.barriers = Barriers(self.outbox.generations)
        self.view = SourceNamespace(self.source)
        defer(self.view.close)
        self.reading = Reading(self.source, self.outbox, self.intake, self.describe)
        defer(self.reading.close)
        self.worker = Worker()
        defer(self.worker.close)
        self.blockwise = Blockwise(self.source, self.outbox, self.ask, self.describe)
        defer(self.blockwise.close)
        self.phase = "connecting"
        self.selector = selectors.PollSelector()
        defer(self.selector.close)
        self.uplink = Uplink(options.address, tls, self.selector, self._hello, lambda: self.outbox.epochs.last)
        defer(lambda: self.uplink.close("the sender stops"))
        self.requests = Requests(self)
        self.scrub = None if options.scrub is None else Scrub(self, options.scrub, options.scrub_rate)
        self.control = ControlServer(self.state.path, self.selector, self.requests.handle)
        defer(self.control.close)
        for watched in (self.sensor, names, self.reading, self.worker, self.blockwise, self.ledger, self.catchup):
            if watched is not None:
                self.selector.register(watched.fileno(), selectors.EVENT_READ, watched)
        self.progress = Progress()
        defer(self.progress.close)
        self._sweeping = False
        self._next_mark = 0
        self.turn = 0
        self._turned = 0
        self._session: object = None
        self._request = count(1)
        self._asked: dict[int, Callable[[dict[str, Any]], None]] = {}
        self._refused = Seldom()
        self._pause_looks = 0
        self._resolved = 0
        self._housekept = 0.0
        self._oldest = 0
        self.metrics.oldest_unreplicated.set_function(self.oldest_age)
        if self.ledger.known:
            self._go_on()

    def _go_on(self) -> None:
        """Take up what a predecessor left."""
        now = time.monotonic_ns()
        self.phase = "scanning"
        self.outbox.succeeding = True
        if not self._gap:
            # Whose pages were dirty and silent the predecessor knew. Once all are written out, the next store is told.
            self.outbox.outsiders.forget()
            self.worker.submit(lambda: syscalls.syncfs(self.source.read_fd), self._written_out)
        for id in self.exclude.own:  # made in the source since the predecessor looked
            for slot in self.index.slots_of(id):
                self.resolver.look(slot, now)
        items = self.journal.restored()
        if items is None:
            self.journal.forget()
        else:
            self.intake.restore(items)
            self.journal.restored_all()
        if self._gap or items is None:
            self.metrics.resyncs.add("gap")
            self.catchup.survey()
        self.journal.begin(now, anew=items is None)
        if self.catchup.busy:
            self.journal.marks([Overflow()], now)

    def _written_out(self, result: Exception | None) -> None:
        if result is None:
            self.outbox.outsiders.remember()
        else:
            log.error("cannot sync %s: %s; new files are taken for mapped", self.source.path, result)

    def _survey(self, content: bool) -> None:
        self.catchup.survey(content=content)

    def _owed(self) -> Iterator[Mark]:
        """All that is not durable, or is and the index does not say so yet; for the journal."""
        yield from snapshot.marks(self.outbox)
        for told in (*self.ledger.unwritten, *self.outbox.news.waiting):
            yield from (SlotLook(slot, None) for slot in told.slots)
        if self.catchup.busy:
            yield Overflow()

    # ------------------------------------------------------------------ the loop

    def stop(self) -> None:
        """End `run` after this turn."""
        self._stopping = True

    def run(self) -> None:
        """Replicate until `stop`. RefusedError if the receiver never takes us, EnvironmentFault if the source goes."""
        while not self._stopping:
            for key, events in self.selector.select(self._patience()):
                if isinstance(key.data, ControlServer) or hasattr(key.data, "caller"):
                    self.control.ready(key, events)
            self.turn += 1
            now = self._turned = time.monotonic_ns()
            self.intake.take_names(now)
            self.intake.take_records()
            self.reading.take(now)
            self.worker.collect()
            self.ledger.collect()
            self.catchup.turn(now)
            self._hear(now)
            self._resolve(now)
            self._read(now)
            self._send(now)
            self.blockwise.turn()
            if self.phase in ("sending", "ready") and self.uplink.connection is not None:
                self.comparison.ask_names()
            self._advance(now)
            self._say_ready()
            self.requests.turn()
            if self.scrub is not None:
                self.scrub.turn()
            self._housekeep(now)
            self.uplink.retune()
            self.control.retune()

    def close(self) -> None:
        """Give everything back; hooks stay for the next sender, unless this one was told otherwise."""
        self._stack.close()

    def _patience(self) -> float:
        """Seconds until something is to be done even if nothing happens."""
        if (
            self.outbox.reads.readable
            or self.barriers.closing
            or (self.resolver.workable and time.monotonic_ns() >= self._pause_looks)
        ):
            return 0.0
        wait = min(self.uplink.due(), HOUSEKEEPING)
        if self.resolver.waiting:
            wait = min(wait, 0.005)
        if self.outbox.reads.calming and self.uplink.connection is not None:
            wait = min(wait, CALM / SECOND)
        retry = self.outbox.next_try(self._turned)
        if retry is not None:
            wait = min(wait, max(0.0, (retry - time.monotonic_ns()) / SECOND))
        return wait

    # ------------------------------------------------------------------ looking and reading

    def _resolve(self, now: int) -> None:
        held_only = not self.resolver.workable
        if now < self._pause_looks or not self.resolver.pending or self.phase == "connecting":
            return
        if held_only and now - self._resolved < 5_000_000:
            return
        if not self.resolver.complete and len(self.table) > BACKLOG:
            return
        self._resolved = now
        changes = self.resolver.resolve(self.view, now, LOOKS)
        self.journal.marks((ListLook(id) for id in changes.lists), now)
        self.outbox.changed(changes, time.monotonic_ns())
        self.intake.take_records()  # a look may have seen more than was drained: a name must not show what it will say
        for where, error in changes.failed[:1]:
            log.error("cannot look at %s: %s; trying again", self.describe(where), error.strerror)
            self._pause_looks = now + SECOND

    def _read(self, now: int) -> None:
        if self.uplink.connection is not None and self.phase != "connecting":
            self.reading.start(now)

    # ------------------------------------------------------------------ the receiver

    def _hello(self) -> m.Hello:
        return m.Hello(
            source=self.identity.source,
            root=self.source.id,
            instance=self.ledger.instance,
            durable=self.ledger.durable,
            replica=self.identity.replica,
            fstype=self.source.fstype,
            hostname=socket.gethostname(),
            boot_id=boot_id(),
            ancestors=ancestors(self.options.source),
            software=__version__,
        )

    def _hear(self, now: int) -> None:
        heard = self.uplink.turn()
        connection = self.uplink.connection
        if connection is not self._session:
            if self._session is not None:
                self._lost_session()
            self._session = connection
            if connection is not None:
                self._welcomed(now)
        for message in heard:
            if isinstance(message, m.Applied):
                answer = message.answer
                self.metrics.needs.add(len(answer.needs))
                self.journal.marks((Whole(id) for id in answer.needs), now)
                self.journal.marks((Doubt(id) for id in answer.doubts), now)
                self.journal.marks((SlotLook(slot, None) for slot in answer.looks), now)
                self._refusals(answer.refusals)
                try:
                    ages = self.outbox.applied(answer, now)
                except RemoteError as error:
                    self.uplink.drop(error)
                    return
                self._observe(self.metrics.lag_applied, ages)
                self.metrics.epochs.add()
            elif isinstance(message, m.Durable):
                self.ledger.durable = message.epoch
                self._refusals(message.lost)
                self.journal.marks((Whole(refusal.id) for refusal in message.lost), now)
                self.outbox.lost(message.lost, message.epoch, now)
                self.metrics.durable_epoch.set(message.epoch)
                self._observe(self.metrics.lag_durable, self.outbox.durable(message.epoch, now))
            elif isinstance(message, m.Checked):
                self._answered(message)

    def _answered(self, message: m.Checked) -> None:
        hear = self._asked.pop(message.request, None)
        if hear is None:
            return
        try:
            hear(message.body)
        except RemoteError as error:
            hear({"error": str(error)})
            self.uplink.drop(error)

    @staticmethod
    def _observe(histogram: Any, ages: list[int]) -> None:
        if ages:
            histogram.observe_many(np.array(ages) / SECOND)

    def _refusals(self, refusals: tuple[Refusal, ...]) -> None:
        self.metrics.refusals.add(len(refusals))
        number = self._refused.count(len(refusals))
        if number:
            what = self.describe(refusals[0].id)
            more = f" (and {number - 1} more)" if number > 1 else ""
            log.error("the replica refuses %s: %s%s; trying again", what, refusals[0].reason, more)

    def _lost_session(self) -> None:
        self.outbox.disconnected()
        self.reading.forget_pages()
        asked, self._asked = self._asked, {}
        for hear in asked.values():
            hear({"error": "the connection was lost"})

    def _welcomed(self, now: int) -> None:
        connection, welcome = self.uplink.connection, self.uplink.welcome
        assert connection is not None
        assert welcome is not None
        self.metrics.sessions.add()
        self.hooks.begun()
        if connection.session.ahead:
            log.warning("the replica has more than this sender remembers: was its state directory set back?")
            self.ledger.renew()
            self.ledger.mistrust()
            self.journal.renew(self.ledger.instance, now)
            self.catchup.survey()
            self.uplink.drop(LinkLost("connecting anew, to compare everything"))
            return
        for id in self._exclude_own():
            for slot in self.index.slots_of(id):
                self.resolver.look(slot, now)
        other = self.identity.replica not in (None, welcome.replica)
        if self.identity.replica != welcome.replica:
            self.identity.replica = welcome.replica
            self.state.write(self.identity)
        if self.phase == "connecting":
            self.outbox.checking = not welcome.empty
            self.metrics.resyncs.add("start")
            self.outbox.start(now)
            self.phase = "scanning"
        elif other or connection.session.reverted or (self.ledger.mistrusted and not self._sweeping):
            log.warning("the replica is not in the state that it was left in: comparing everything")
            self.metrics.resyncs.add("compare")
            self.ledger.mistrust()
            self._sweeping = True
            self.outbox.checking = True
            self.catchup.sweep()
            self.phase = "scanning"
        if welcome.open:  # it may have a part only: it has all once what is owed now is durable
            self._barrier(lambda: self.ask({"op": "mended"}, lambda body: None))

    def _exclude_own(self) -> list[FileId]:
        """Leave out what daemons of this host keep in the source; those that are new to us."""
        found = own_directories(self.source, self.options.state)
        if self.source.id in found:
            raise EnvironmentFault(
                f"{self.source.path} is the state directory of a daemon: name another with --state, or another source"
            )
        new = [id for id in found if id not in self.exclude.own]
        self.exclude.own.update(found)
        for path in self.excluded(new):
            log.info("%s is not replicated: rsyncfs keeps its state there", path)
        return new

    def excluded(self, ids: Iterable[FileId] | None = None) -> list[str]:
        """Which directories (of `ids`) in the source are left out because they are rsyncfs's own."""
        own = self.exclude.own
        paths = [own[id] for id in (own if ids is None else ids)]
        return [path for path in paths if is_within(Path(path), self.options.source)]

    def ask(self, body: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        """Have the receiver answer a request, in the stream of epochs. Without a session the answer has an "error"."""
        number = next(self._request)
        self._asked[number] = answer
        if not self.uplink.say(m.Check(number, body)):
            del self._asked[number]
            answer({"error": "there is no connection to the receiver"})

    def _send(self, now: int) -> None:
        while (connection := self.uplink.connection) is not None:
            session = connection.session
            if connection is not self._session or session.window_left() <= 0 or session.in_flight[0] >= UNAPPLIED:
                return
            epoch = self.outbox.epochs.compose()
            if epoch is None:
                return
            facts, payload = epoch
            self.ledger.reserve(facts.epoch)
            self.metrics.data_bytes.add(sum(len(data) for _, _, data in payload))
            self.uplink.say_epoch(facts, payload)
            self._read(now)

    # ------------------------------------------------------------------ progress

    def _advance(self, now: int) -> None:
        """Go from one phase of the first sync to the next, and let waiters through."""
        generations = self.outbox.generations
        found = self.phase == "scanning" and not self.resolver.workable and not self.catchup.busy
        if found and self.uplink.connection is not None:
            self.resolver.complete = True
            for id in self.index.nameless():  # whoever was to be found has been found
                self.resolver.doubt(id, now)
            self.phase = "sending"
            self._barrier(self._scanned)
        sent, received = self.uplink.wire_bytes
        self.metrics.wire_bytes.follow({"sent": sent, "received": received})  # who was made to wait finds it counted
        if self.barriers.closing:  # what was lost before somebody asked belongs to the generation that is closed now
            self.intake.check_losses()
        in_sync = self.phase == "ready"
        scanned = in_sync or self.phase == "sending"
        self.barriers.turn(self.sensor.consumed(), self.turn, scanned=scanned, in_sync=in_sync)
        self.progress.show(self.phase, len(self.index), figures.dirty_files(self.outbox), generations.owed)

    def _scanned(self) -> None:
        """Everything that the source has is on the replica: now what only the replica has."""
        if self.outbox.checking:
            self.comparison.start(self._compared)
        elif self.ledger.known:
            self.comparison.nameless(self._compared)
        else:
            self._in_sync()

    def _compared(self, complete: bool) -> None:
        if complete:
            self.ledger.trust()
            self._sweeping = False
            self._in_sync()
        else:
            self.phase = "scanning"

    def _barrier(self, passed: Callable[[], None]) -> None:
        self.barriers.add(self.sensor.produced(), self.turn, passed, early=True)

    def _in_sync(self) -> None:
        self.phase = "ready"
        self.outbox.succeeding = False
        self.progress.close()
        if not self.ledger.known:
            self.ledger.scanned()
            self.journal.begin(time.monotonic_ns(), anew=True)
        self._housekept = 0.0  # a successor may rely on the index from the next housekeeping on

    def _say_ready(self) -> None:
        """Once, when whoever comes after this sender need not begin anew."""
        if self.phase == "ready" and not self._told_ready and (self.ledger.known or self.ledger.trouble):
            self._told_ready = True
            self._ready()

    def _housekeep(self, now: int) -> None:
        if time.monotonic() - self._housekept < HOUSEKEEPING:
            return
        self._housekept = time.monotonic()
        if not self.source.still_there():
            raise EnvironmentFault(
                f"{self.source.path} is not what it was: unmounted, replaced or removed; nothing was deleted on the "
                "replica; mount it again and start the sender"
            )
        self.intake.check_losses()
        self.ledger.turn(self.outbox, now)  # what was told is relied on only if nothing was lost of it
        self.journal.tick(now)
        if self.phase == "ready" and now >= self._next_mark:
            self._next_mark = now + MARKS * SECOND
            self.catchup.mark(lambda mark: self._barrier(lambda: self.ledger.mark(mark)))
        self.outbox.settle(now)
        metrics = self.metrics
        metrics.journal_kept.set(0 if self.journal.trouble or self.ledger.trouble else 1)
        metrics.journal_bytes.set(self.journal.size)
        metrics.events_suppressed.follow(self.sensor.untold())
        metrics.connected.set(1 if self.uplink.connection is not None else 0)
        metrics.dirty_files.set(figures.dirty_files(self.outbox))
        metrics.dirty_bytes.set(figures.dirty_bytes(self.outbox))
        metrics.held_deletions.set(self.outbox.deletions.holding)
        metrics.held_files.set(len(self.outbox.pace.stuck()))
        metrics.inflight_epochs.set(len(self.outbox.epochs.inflight))
        metrics.scan_files.set(len(self.index))
        metrics.scan_running.set(0 if self.resolver.complete else 1)
        self._oldest = figures.oldest(self.outbox) or 0
        connection = self.uplink.connection
        info = connection.transport.tcp_info() if connection is not None else None
        metrics.tcp_rtt.set(info.rtt_seconds if info else math.nan)
        metrics.tcp_unsent_bytes.set(info.unsent_bytes if info else 0)
        metrics.tcp_retransmits.follow(info.retransmits if info else 0)

    def oldest_age(self) -> float:
        """Seconds since the oldest change that is not durable on the replica; 0 if there is none."""
        return (time.monotonic_ns() - self._oldest) / SECOND if self._oldest else 0.0

    def describe(self, what: Slot | FileId) -> str:
        """A path relative to the source, for people; "." is the source itself."""
        path = self.index.path(what.parent if isinstance(what, Slot) else what)
        if path is None:
            return f"inode {(what.parent if isinstance(what, Slot) else what).text()}"
        return printable(os.path.join(path, what.name) if isinstance(what, Slot) else path or b".")

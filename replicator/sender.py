"""The sender: one loop that owns all state of one source.

Takes options; runs until it is told to stop. Each turn it drains the names' queue and the ring, looks at what changed,
takes finished reads, hears the receiver, starts reads and sends epochs. Nothing in a turn blocks but looking at names.

What it is put together from, in the order in which a change passes through:

    attachment  what of the kernel is attached to the source
    intake      what the kernel says, into the journal and the outbox
    looking     names that may have changed
    reading     content that is owed
    outbox      what is owed, on its way, and durable (source/)
    dialogue    epochs to the receiver, and what it says of them, over an uplink

and beside that: catchup (what nobody told of), comparison (names that only the replica has), blockwise (content in
doubt), phases (how far it is), barriers (`wait`), ledger and succession (what the next sender needs), requests (what is
asked of it), scrub, gauges.
"""

from __future__ import annotations

import logging
import os
import selectors
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from replicator import syscalls
from replicator.attachment import Attachment
from replicator.attribution.cgroups import Cgroups
from replicator.attribution.processes import command_of
from replicator.barrier import Barriers
from replicator.blockwise import Blockwise
from replicator.catchup import Catchup
from replicator.comparison import Comparison
from replicator.config import SendOptions
from replicator.dialogue import Dialogue, greeting
from replicator.dirty.writers import Writers
from replicator.errors import EnvironmentFault
from replicator.gauges import Gauges
from replicator.intake import Intake
from replicator.ledger import Ledger
from replicator.link.connection import LinkLost
from replicator.link.tls import client_context
from replicator.looking import Looking
from replicator.model import FileId, Slot
from replicator.observe.control import ControlServer
from replicator.observe.log import printable
from replicator.observe.metrics import SenderMetrics
from replicator.phases import Phases
from replicator.progress import Progress
from replicator.reading import CALM, Reading
from replicator.requests import Requests
from replicator.source import figures
from replicator.source.outbox import Outbox
from replicator.state import StateDirectory
from replicator.succession import Succession
from replicator.tree.exclude import Exclude
from replicator.tree.handles import SourceRoot
from replicator.tree.own import OwnDirectories
from replicator.uplink import Uplink
from replicator.verify.scrub import Scrub
from replicator.work import Worker

log = logging.getLogger(__name__)

HOUSEKEEPING = 0.25  # s
IDLE = 10.0
"""Seconds between looks after the house when nothing happens: each costs some milliseconds."""
HURRIED = 8
"""Turns in a row that may do nothing but send bytes."""
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
        self.turn = 0
        self._hurried = 0
        self._turned = 0
        self._housekept = 0.0
        self._interval = HOUSEKEEPING
        self._next_mark = 0
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
        self.exclude = Exclude(options.exclude)
        self.state = StateDirectory.open(options.state)
        defer(self.state.close)
        self.identity = self.state.identity()
        self.source = SourceRoot.open(options.source)
        defer(self.source.close)
        self.ledger = Ledger(self.state.path, {"root": self.source.id.text(), "exclude": options.exclude})
        defer(self.ledger.close)
        self.own = OwnDirectories(self.source, options.source, options.state, self.exclude)
        self.own.leave_out()
        self.metrics = SenderMetrics()
        cgroups = Cgroups()
        defer(cgroups.close)
        self.outbox = Outbox(
            self.source.id,
            self.exclude,
            writers=Writers(command_of, cgroups.path),
            index=self.ledger.index(self.source.id),
            last_epoch=self.ledger.last_epoch,
            max_delete=options.max_delete,
        )
        self.index, self.table = self.outbox.index, self.outbox.table
        self.barriers = Barriers(self.outbox.generations)
        self.catchup = Catchup(self.source, self.ledger.store, self.outbox, options.scan)
        defer(self.catchup.close)
        attached = Attachment(options, self.source, self._unattended)
        defer(attached.close)
        self.hooks, self.sensor = attached.hooks, attached.sensor
        succession = Succession(self.ledger, self.outbox, self.catchup, self.hooks.forsake)
        self.journal = succession.journal
        self.intake = Intake(self.sensor, attached.names, self.outbox, self.metrics, self.journal, self._survey)
        self.intake.fence()
        self.looking = Looking(self.source, self.outbox, self.intake, self.journal, self.describe)
        defer(self.looking.close)
        self.reading = Reading(self.source, self.outbox, self.intake, self.describe)
        defer(self.reading.close)
        self.worker = Worker()
        defer(self.worker.close)
        self.selector = selectors.PollSelector()
        defer(self.selector.close)
        hello = partial(greeting, options, self.identity, self.source, self.ledger)
        self.uplink = Uplink(options.address, tls, self.selector, hello, lambda: self.outbox.epochs.last)
        self.dialogue = Dialogue(
            self.uplink,
            self.outbox,
            self.ledger,
            self.journal,
            self.metrics,
            self.describe,
            begun=self._begun,
            ended=self.reading.forget_pages,
        )
        self.comparison = Comparison(self.outbox, self.dialogue.ask, self._barrier)
        self.blockwise = Blockwise(self.source, self.outbox, self.dialogue.ask, self.describe)
        defer(self.blockwise.close)
        defer(lambda: self.uplink.close("the sender stops"))  # before anything is waited for
        self.phases = Phases(
            self.outbox,
            self.ledger,
            self.journal,
            self.catchup,
            self.comparison,
            self.metrics,
            barrier=self._barrier,
            connected=lambda: self.uplink.connection is not None,
            ready=self._in_sync,
        )
        self.gauges = Gauges(self.metrics, self.outbox, self.sensor, self.hooks, self.ledger, self.journal, self.uplink)
        self.requests = Requests(self)
        self.scrub = None if options.scrub is None else Scrub(self, options.scrub, options.scrub_rate)
        self.control = ControlServer(self.state.path, self.selector, self.requests.handle)
        defer(self.control.close)
        threads = self.reading, self.worker, self.blockwise, self.ledger, self.catchup
        for watched in (self.sensor, attached.names, *threads):
            if watched is not None:
                self.selector.register(watched.fileno(), selectors.EVENT_READ, watched)
        self.progress = Progress()
        defer(self.progress.close)
        if self.ledger.known:
            self._go_on(succession, gap=attached.gap)

    def _unattended(self) -> None:
        if self.ledger.known:
            self.catchup.prepare()

    def _go_on(self, succession: Succession, *, gap: bool) -> None:
        """Take up what a predecessor left."""
        self.phases.take_up()
        if not gap:
            # Whose pages were dirty and silent the predecessor knew. Once all are written out, the next store is told.
            self.outbox.outsiders.forget()
            self.worker.submit(lambda: syscalls.syncfs(self.source.read_fd), self._written_out)
        if succession.take_up(self.intake, self.exclude.own, gap=gap):
            self.metrics.resyncs.add("gap")

    def _written_out(self, result: Exception | None) -> None:
        if result is None:
            self.outbox.outsiders.remember()
        else:
            log.error("cannot sync %s: %s; new files are taken for mapped", self.source.path, result)

    def _survey(self, content: bool) -> None:
        self.catchup.survey(content=content)

    # ------------------------------------------------------------------ the loop

    def stop(self) -> None:
        """End `run` after this turn."""
        self._stopping = True

    def run(self) -> None:
        """Replicate until `stop`. RefusedError if the receiver never takes us, EnvironmentFault if the source goes."""
        while not self._stopping:
            woken = self._answer(self._patience())
            if woken == [self.sensor] and not self.barriers and self._hurried < HURRIED:
                self._hurry()
                continue
            self._hurried = 0
            self.turn += 1
            now = self._turned = time.monotonic_ns()
            self.intake.take_names(now)
            self.intake.take_records()
            self._answer(0)  # a turn may be long, if a ring is full: who asks should not wait for several
            self.reading.take(now)
            self.worker.collect()
            self.ledger.collect()
            self.catchup.turn(now)
            self.dialogue.hear(now)
            if not self.phases.connecting:
                self.looking.turn(now)
            self._answer(0)
            self._read(now)
            while self.dialogue.send():
                self._read(now)
            self._answer(0)
            self.blockwise.turn()
            if self.phases.scanned and self.uplink.connection is not None:
                self.comparison.ask_names()
            self.phases.turn(now)
            self._pass_barriers()
            self._say_ready()
            self.requests.turn()
            if self.scrub is not None:
                self.scrub.turn()
            self._housekeep(now)
            self.uplink.retune()
            self.control.retune()

    def _hurry(self) -> None:
        """Nothing but bytes has changed: have them on their way, and leave the rest of a turn to another one."""
        self._hurried += 1
        now = time.monotonic_ns()
        self.intake.take_records()
        self._read(now)
        while self.dialogue.send():
            pass
        self.uplink.retune()

    def _answer(self, patience: float) -> list[object]:
        """Wait until something happens, for so many seconds; hear those who ask something. What it was that woke us."""
        woken = self.selector.select(patience)
        for key, events in woken:
            if isinstance(key.data, ControlServer) or hasattr(key.data, "caller"):
                self.control.ready(key, events)
        found = [key.data for key, _ in woken]
        if found and found != [self.uplink]:
            self._interval = HOUSEKEEPING
        return found

    def close(self) -> None:
        """Give everything back; hooks stay for the next sender, unless this one was told otherwise."""
        self._stack.close()

    def _patience(self) -> float:
        """Seconds until something is to be done even if nothing happens."""
        if self.outbox.reads.readable or self.barriers.closing:
            return 0.0
        wait = min(self.uplink.due(), self._interval, self.looking.patience())
        if self.outbox.reads.calming and self.uplink.connection is not None:
            wait = min(wait, CALM / SECOND)
        retry = self.outbox.next_try(self._turned)
        if retry is not None:
            wait = min(wait, max(0.0, (retry - time.monotonic_ns()) / SECOND))
        return wait

    def _read(self, now: int) -> None:
        if self.uplink.connection is not None and not self.phases.connecting:
            self.reading.start(now)

    def _pass_barriers(self) -> None:
        """Let waiters through."""
        self.gauges.follow_wire()  # who was made to wait finds it counted
        if self.barriers.closing:  # what was lost before somebody asked belongs to the generation that is closed now
            self.intake.check_losses()
        phases = self.phases
        self.barriers.turn(self.sensor.consumed(), self.turn, scanned=phases.scanned, in_sync=phases.ready)
        owed = self.outbox.generations.owed
        self.progress.show(phases.current, len(self.index), figures.dirty_files(self.outbox), owed)

    def _barrier(self, passed: Callable[[], None]) -> None:
        self.barriers.add(self.sensor.produced(), self.turn, passed, early=True)

    # ------------------------------------------------------------------ now and then

    def _begun(self, now: int) -> None:
        """A session has begun."""
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
        for id in self.own.leave_out():
            for slot in self.index.slots_of(id):
                self.outbox.resolver.look(slot, now)
        other = self.identity.replica not in (None, welcome.replica)
        if self.identity.replica != welcome.replica:
            self.identity.replica = welcome.replica
            self.state.write(self.identity)
        self.phases.begun(now, empty=welcome.empty, changed=other or connection.session.reverted)
        if welcome.open:  # it may have a part only: it has all once what is owed now is durable
            self._barrier(lambda: self.dialogue.ask({"op": "mended"}, lambda body: None))

    def _in_sync(self) -> None:
        """The replica has all that the source has."""
        self.progress.close()
        self._housekept = 0.0  # a successor may rely on the index from the next housekeeping on

    def _say_ready(self) -> None:
        """Once, when whoever comes after this sender need not begin anew."""
        if self.phases.ready and not self._told_ready and (self.ledger.known or self.ledger.trouble):
            self._told_ready = True
            self._ready()

    def _housekeep(self, now: int) -> None:
        if time.monotonic() - self._housekept < self._interval:
            return
        self._interval = HOUSEKEEPING if self._is_busy() else min(2 * self._interval, IDLE)
        self._housekept = time.monotonic()
        if not self.source.still_there():
            raise EnvironmentFault(
                f"{self.source.path} is not what it was: unmounted, replaced or removed; nothing was deleted on the "
                "replica; mount it again and start the sender"
            )
        self.intake.check_losses()
        self.ledger.turn(self.outbox, now)  # what was told is relied on only if nothing was lost of it
        self.journal.tick(now)
        if self.phases.ready and now >= self._next_mark:
            self._next_mark = now + MARKS * SECOND
            self.catchup.mark(lambda mark: self._barrier(lambda: self.ledger.mark(mark)))
        self.outbox.settle(now)
        self.gauges.measure()

    def _is_busy(self) -> bool:
        """Whether something may have to be done although nothing new happens."""
        outbox = self.outbox
        return bool(
            not self.phases.ready
            or self.uplink.connection is None
            or outbox.generations.owed
            or outbox.pace.unsettled_count
            or outbox.deletions.holding
            or self.barriers
            or self.requests.busy
            or self.scrub is not None
            or self.journal.trouble
            or self.ledger.trouble
        )

    def describe(self, what: Slot | FileId) -> str:
        """A path relative to the source, for people; "." is the source itself."""
        path = self.index.path(what.parent if isinstance(what, Slot) else what)
        if path is None:
            return f"inode {(what.parent if isinstance(what, Slot) else what).text()}"
        return printable(os.path.join(path, what.name) if isinstance(what, Slot) else path or b".")

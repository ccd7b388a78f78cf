"""What sender and receiver say to each other in a session: epochs and what became of them, questions and answers.

Takes an uplink; sends what the outbox composes, and gives it what the receiver says of that, once the journal has it.
Whoever asks is answered once: by the receiver, or that there is no session (any more). Says when a session has begun or
ended. Never blocks.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np

from replicator import __version__
from replicator.capture.names import SlotLook
from replicator.config import SendOptions
from replicator.errors import RemoteError
from replicator.host import ancestors, boot_id
from replicator.journal.journal import Journal
from replicator.journal.marks import Doubt, Whole
from replicator.ledger import Ledger
from replicator.link import message as m
from replicator.model import FileId, Refusal, Slot
from replicator.observe.log import Seldom
from replicator.observe.metrics import SenderMetrics
from replicator.source.outbox import Outbox
from replicator.state import Identity
from replicator.tree.handles import SourceRoot
from replicator.uplink import Uplink

log = logging.getLogger(__name__)

SECOND = 1_000_000_000
FEW = 16
"""Up to so many values are taken one by one: numpy's calls cost more than that."""


def greeting(options: SendOptions, identity: Identity, source: SourceRoot, ledger: Ledger) -> m.Hello:
    """What a sender says first."""
    return m.Hello(
        source=identity.source,
        root=source.id,
        instance=ledger.instance,
        durable=ledger.durable,
        replica=identity.replica,
        fstype=source.fstype,
        hostname=socket.gethostname(),
        boot_id=boot_id(),
        ancestors=ancestors(options.source),
        software=__version__,
    )


class Dialogue:
    """One sender's, over any number of sessions. Times are CLOCK_MONOTONIC in ns."""

    def __init__(
        self,
        uplink: Uplink,
        outbox: Outbox,
        ledger: Ledger,
        journal: Journal,
        metrics: SenderMetrics,
        describe: Callable[[Slot | FileId], str],
        begun: Callable[[int], None],
        ended: Callable[[], None],
    ) -> None:
        """`describe` names an inode for people. `begun(now)` and `ended()` are told of sessions."""
        self._uplink = uplink
        self._outbox = outbox
        self._ledger = ledger
        self._journal = journal
        self._metrics = metrics
        self._describe = describe
        self._begun = begun
        self._ended = ended
        self._session: object = None
        self._request = count(1)
        self._asked: dict[int, Callable[[dict[str, Any]], None]] = {}
        self._refused = Seldom()

    def hear(self, now: int) -> None:
        """Take what the receiver says. RefusedError if it never takes us."""
        heard = self._uplink.turn()
        connection = self._uplink.connection
        if connection is not self._session:
            if self._session is not None:
                self._lost()
            self._session = connection
            if connection is not None:
                self._begun(now)
        for message in heard:
            if isinstance(message, m.Applied):
                if not self._applied(message, now):
                    return
            elif isinstance(message, m.Durable):
                self._durable(message, now)
            elif isinstance(message, m.Checked):
                self._answered(message)

    def send(self) -> bool:
        """Send the next epoch, if there is one and it may go now; whether it went."""
        connection = self._uplink.connection
        if connection is None or connection is not self._session:
            return False
        session = connection.session
        now, traffic, epochs = time.monotonic_ns(), self._outbox.traffic, self._outbox.epochs
        bulk = traffic.room(now)
        if session.window_left() <= 0 or not (bulk or traffic.open):
            return False
        epoch = epochs.compose(bulk, small=traffic.open, apart=traffic.shared(now))
        if epoch is None:
            return False
        facts, payload = epoch
        traffic.sent(facts.epoch, epochs.inflight[-1].bulk, now)
        self._ledger.reserve(facts.epoch)
        self._metrics.data_bytes.add(sum(len(data) for _, _, data in payload))
        self._uplink.say_epoch(facts, payload)
        return True

    def ask(self, body: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        """Have the receiver answer a request, in the stream of epochs. Without a session the answer has an "error"."""
        number = next(self._request)
        self._asked[number] = answer
        if not self._uplink.say(m.Check(number, body)):
            del self._asked[number]
            answer({"error": "there is no connection to the receiver"})

    def _applied(self, message: m.Applied, now: int) -> bool:
        """False if it is nonsense: then there is no session any more."""
        answer = message.answer
        traffic = self._outbox.traffic
        traffic.applied(answer.epoch, now, self._uplink.round_trip() if traffic.measurable else 0)
        self._metrics.needs.add(len(answer.needs))
        self._journal.marks((Whole(id) for id in answer.needs), now)
        self._journal.marks((Doubt(id) for id in answer.doubts), now)
        self._journal.marks((SlotLook(slot, None) for slot in answer.looks), now)
        self._refusals(answer.refusals)
        try:
            ages = self._outbox.applied(answer, now)
        except RemoteError as error:
            self._uplink.drop(error)
            return False
        _observe(self._metrics.lag_applied, ages)
        self._metrics.epochs.add()
        return True

    def _durable(self, message: m.Durable, now: int) -> None:
        self._ledger.durable = message.epoch
        self._refusals(message.lost)
        self._journal.marks((Whole(refusal.id) for refusal in message.lost), now)
        self._outbox.lost(message.lost, message.epoch, now)
        self._metrics.durable_epoch.set(message.epoch)
        _observe(self._metrics.lag_durable, self._outbox.durable(message.epoch, now))

    def _answered(self, message: m.Checked) -> None:
        hear = self._asked.pop(message.request, None)
        if hear is None:
            return
        try:
            hear(message.body)
        except RemoteError as error:
            hear({"error": str(error)})
            self._uplink.drop(error)

    def _refusals(self, refusals: tuple[Refusal, ...]) -> None:
        self._metrics.refusals.add(len(refusals))
        number = self._refused.count(len(refusals))
        if number:
            what = self._describe(refusals[0].id)
            more = f" (and {number - 1} more)" if number > 1 else ""
            log.error("the replica refuses %s: %s%s; trying again", what, refusals[0].reason, more)

    def _lost(self) -> None:
        self._outbox.disconnected()
        self._ended()
        asked, self._asked = self._asked, {}
        for hear in asked.values():
            hear({"error": "the connection was lost"})


def _observe(histogram: Any, ages: list[int]) -> None:
    if len(ages) > FEW:
        histogram.observe_many(np.array(ages) / SECOND)
        return
    for age in ages:
        histogram.observe(age / SECOND)

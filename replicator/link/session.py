"""The session: who may say what when. Every transition of a connection is in this file. No I/O.

Both ends run the same machine over both parties' messages: `sent()` notes what this side says and raises
ProtocolMisuse if it must not (a bug here), `received()` what the peer says and raises RemoteError if it must not.
Takes messages with their size on the wire; gives the state, what is in flight and how much more may be sent.

    sender                      receiver
    IDLE --Hello--> OFFERED     IDLE --Welcome--> OPEN, --Refuse--> CLOSED
    OFFERED -(Welcome)-> OPEN
    OPEN --Facts--> EPOCH
    EPOCH --Data--> EPOCH
    EPOCH --End--> OPEN
    any --Bye--> CLOSED         any --Bye--> CLOSED

It does not look into facts and data: epoch.py puts them together.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto

from replicator.errors import RemoteError
from replicator.link import message as m

MAX_REQUESTS = 1024
"""Checks that one side may have unanswered."""

MAX_PINGS = 16
"""Pings that one side may have unanswered."""


class Party(Enum):
    """The two ends."""

    SENDER = auto()
    RECEIVER = auto()

    @property
    def other(self) -> Party:
        """The opposite end."""
        return Party.RECEIVER if self is Party.SENDER else Party.SENDER


class State(Enum):
    """What one party has said so far."""

    IDLE = auto()
    """Nothing."""
    OFFERED = auto()
    """The sender said Hello and waits for the answer."""
    OPEN = auto()
    """Between epochs."""
    EPOCH = auto()
    """The sender is in the middle of an epoch."""
    CLOSED = auto()
    """It said its last."""


class ProtocolMisuse(Exception):
    """This side was about to say what the protocol does not allow: a bug of this program."""


_SENDER, _RECEIVER = Party.SENDER, Party.RECEIVER

TRANSITIONS: dict[tuple[Party, State], dict[type[m.Message], State]] = {
    (_SENDER, State.IDLE): {m.Hello: State.OFFERED, m.Bye: State.CLOSED},
    (_SENDER, State.OFFERED): {m.Bye: State.CLOSED},
    (_SENDER, State.OPEN): {
        m.FactsFrame: State.EPOCH,
        m.Ping: State.OPEN,
        m.Pong: State.OPEN,
        m.Check: State.OPEN,
        m.Checked: State.OPEN,
        m.Bye: State.CLOSED,
    },
    (_SENDER, State.EPOCH): {m.Data: State.EPOCH, m.End: State.OPEN, m.Bye: State.CLOSED},
    (_SENDER, State.CLOSED): {},
    (_RECEIVER, State.IDLE): {m.Welcome: State.OPEN, m.Refuse: State.CLOSED, m.Bye: State.CLOSED},
    (_RECEIVER, State.OPEN): {
        m.Applied: State.OPEN,
        m.Durable: State.OPEN,
        m.Ping: State.OPEN,
        m.Pong: State.OPEN,
        m.Check: State.OPEN,
        m.Checked: State.OPEN,
        m.Bye: State.CLOSED,
    },
    (_RECEIVER, State.CLOSED): {},
}
"""(party, its state) → the messages it may say and the state each leads to."""


def version_refusal(hello: m.Hello) -> m.Refuse | None:
    """The receiver's answer to a sender with which it has no protocol version in common; None if it has."""
    if hello.oldest <= m.PROTOCOL and hello.newest >= m.OLDEST_PROTOCOL:
        return None
    return m.Refuse(
        "version",
        f"the sender speaks protocol versions {hello.oldest} to {hello.newest}, the receiver {m.OLDEST_PROTOCOL} to"
        f" {m.PROTOCOL}: update the older one",
        permanent=True,
    )


class Session:
    """One connection's state, seen from `role`."""

    def __init__(self, role: Party, last_epoch: int = 0) -> None:
        """`last_epoch`: for the sender, the last epoch that this instance began on an earlier connection."""
        self.role = role
        self.states = {_SENDER: State.IDLE, _RECEIVER: State.IDLE}
        self.hello: m.Hello | None = None
        self.welcome: m.Welcome | None = None
        self.refusal: m.Refuse | None = None
        self.farewell: m.Bye | None = None
        """The peer's Bye."""
        self.sent_epoch = last_epoch
        """The last epoch that was begun."""
        self.applied = 0
        """The last epoch that was answered with Applied; the durable one of the Welcome to begin with."""
        self.durable = 0
        """The last epoch known to be durable."""
        self.ahead = False
        """Whether the replica has what this sender never sent, as far as it remembers: that was set back to an older
        state."""
        self._flight: deque[tuple[int, int]] = deque()  # (epoch, bytes), begun and not applied
        self._flight_bytes = 0
        self._ended = 0  # the last epoch that is complete
        self._pings: dict[Party, deque[int]] = {_SENDER: deque(), _RECEIVER: deque()}
        self._requests: dict[Party, set[int]] = {_SENDER: set(), _RECEIVER: set()}

    @property
    def open(self) -> bool:
        """Whether the handshake is done and neither side has said Bye."""
        return self.states[_RECEIVER] is State.OPEN and self.states[_SENDER] in (State.OPEN, State.EPOCH)

    @property
    def closed(self) -> bool:
        """Whether a side has said its last."""
        return State.CLOSED in self.states.values()

    @property
    def reverted(self) -> bool:
        """Whether the replica has forgotten what it once called durable: it was set back to an older state."""
        if self.hello is None or self.welcome is None or not self.hello.durable:
            return False
        return self.welcome.instance != self.hello.instance or self.welcome.durable < self.hello.durable

    @property
    def in_flight(self) -> tuple[int, int]:
        """(epochs, bytes on the wire) that were begun and are not applied."""
        return len(self._flight), self._flight_bytes

    def window_left(self) -> int:
        """Bytes that may still be sent before an answer. An epoch may be begun while this is above 0; it may be
        longer than that. 0 too when the epochs are used up or the session is not open between epochs."""
        if self.welcome is None or not self.open or self.states[_SENDER] is not State.OPEN:
            return 0
        if len(self._flight) >= self.welcome.window_epochs:
            return 0
        return max(0, self.welcome.window_bytes - self._flight_bytes)

    def sent(self, message: m.Message, size: int) -> None:
        """Note that this side says `message` of `size` bytes on the wire. ProtocolMisuse if it must not."""
        problem = self._step(self.role, message, size)
        if problem is not None:
            raise ProtocolMisuse(problem)

    def received(self, message: m.Message, size: int) -> None:
        """Note that the peer said `message` of `size` bytes on the wire. RemoteError if it must not.

        What it says after this side's last word was on its way before it could know: it counts no more.
        """
        if self.states[self.role] is State.CLOSED:
            if isinstance(message, m.Bye):
                self.farewell = message
                self.states[self.role.other] = State.CLOSED
            return
        problem = self._step(self.role.other, message, size)
        if problem is not None:
            raise RemoteError(problem)

    def _step(self, party: Party, message: m.Message, size: int) -> str | None:
        """Move on, or say what is wrong with the message and move nothing."""
        who = f"the {party.name.lower()}"
        after = TRANSITIONS[party, self.states[party]].get(type(message))
        if after is None:
            return f"{who} said {type(message).__name__} while {self.states[party].name}, which the protocol forbids"
        problem = self._rules(party, message, size)
        if problem is not None:
            return f"{who} {problem}"
        self.states[party] = after
        return None

    def _rules(self, party: Party, message: m.Message, size: int) -> str | None:
        """The rules beyond the table. The last act of each is to take note of the message."""
        match message:
            case m.Hello():
                self.hello = message
            case m.Welcome():
                return self._welcomed(message)
            case m.Refuse():
                if self.states[_SENDER] is not State.OFFERED:
                    return "refused before it was asked"
                self.refusal = message
            case m.FactsFrame(facts):
                return self._begun(facts.epoch, size)
            case m.Data(epoch) | m.End(epoch):
                return self._continued(epoch, size, end=isinstance(message, m.End))
            case m.Applied(answer):
                return self._applied(answer.epoch)
            case m.Durable(epoch):
                if not self.durable < epoch <= self.applied:
                    return f"called epoch {epoch} durable; {self.durable} was, and {self.applied} is the last applied"
                self.durable = epoch
            case m.Ping(token):
                return self._ask(self._pings[party], token)
            case m.Pong(token):
                pings = self._pings[party.other]
                if not pings or pings[0] != token:
                    return "answered a ping that was not sent"
                pings.popleft()
            case m.Check(request):
                return self._request(self._requests[party], request)
            case m.Checked(request):
                if request not in self._requests[party.other]:
                    return f"answered request {request}, which was not made"
                self._requests[party.other].discard(request)
            case m.Bye():
                if party is not self.role:
                    self.farewell = message
        return None

    def _welcomed(self, welcome: m.Welcome) -> str | None:
        if self.hello is None or self.states[_SENDER] is not State.OFFERED:
            return "welcomed before it was greeted"
        if not self.hello.oldest <= welcome.version <= self.hello.newest:
            return f"chose protocol version {welcome.version}, which was not offered"
        if welcome.instance == self.hello.instance:
            self.ahead = self.role is _SENDER and welcome.durable > self.sent_epoch
            # What was applied and not made durable before is sent again, in new epochs.
            self.applied = self.durable = welcome.durable
            self.sent_epoch = max(self.sent_epoch, welcome.durable)
        self.welcome = welcome
        self.states[_SENDER] = State.OPEN
        return None

    def _begun(self, epoch: int, size: int) -> str | None:
        if epoch <= self.sent_epoch:
            return f"began epoch {epoch} after epoch {self.sent_epoch}"
        if self.window_left() <= 0:
            return f"began epoch {epoch} although the window is used up"
        self.sent_epoch = epoch
        self._flight.append((epoch, size))
        self._flight_bytes += size
        return None

    def _continued(self, epoch: int, size: int, *, end: bool) -> str | None:
        if epoch != self.sent_epoch:
            return f"sent a part of epoch {epoch} in the middle of epoch {self.sent_epoch}"
        # The receiver may not have answered it yet: the epoch under way is always the last in flight.
        number, before = self._flight[-1]
        self._flight[-1] = (number, before + size)
        self._flight_bytes += size
        if end:
            self._ended = epoch
        return None

    def _applied(self, epoch: int) -> str | None:
        if not self._flight or self._flight[0][0] != epoch or epoch > self._ended:
            waiting = self._flight[0][0] if self._flight else "none"
            return f"answered epoch {epoch}, but the next to answer is {waiting}"
        self._flight_bytes -= self._flight.popleft()[1]
        self.applied = epoch
        return None

    @staticmethod
    def _ask(pings: deque[int], token: int) -> str | None:
        if len(pings) >= MAX_PINGS:
            return "sent too many pings without waiting for an answer"
        pings.append(token)
        return None

    @staticmethod
    def _request(requests: set[int], request: int) -> str | None:
        if request in requests:
            return f"made request {request} twice"
        if len(requests) >= MAX_REQUESTS:
            return "made too many requests without waiting for an answer"
        requests.add(request)
        return None

"""The sender's end of the link: keeps a session with the receiver, whatever becomes of the network.

Takes an address; gives an open `Connection`, or None while there is none. Tries again at once when a link, address or
route changed, otherwise after a capped, jittered pause. Driven by a selector loop; never blocks but for the look-up of
a host name. A refusal that trying again cannot mend comes out as RefusedError.
"""

from __future__ import annotations

import logging
import selectors
import ssl
import time
from collections.abc import Callable, Sequence
from itertools import count

from replicator.errors import EnvironmentFault, RefusedError, RemoteError
from replicator.link import message as m
from replicator.link.address import Address, resolve
from replicator.link.backoff import Backoff
from replicator.link.connection import Connection, Heard, LinkLost, Party
from replicator.link.epoch import Piece
from replicator.link.sockets import connect
from replicator.link.tls import require_tls
from replicator.link.watch import open_watch
from replicator.model import Facts

log = logging.getLogger(__name__)


class Uplink:
    """One receiver, over any number of connections."""

    def __init__(
        self,
        address: Address,
        tls: ssl.SSLContext | None,
        selector: selectors.BaseSelector,
        greeting: Callable[[], m.Hello],
        last_epoch: Callable[[], int],
    ) -> None:
        """`greeting` makes the Hello of each new connection; `last_epoch` is the last epoch begun on earlier ones."""
        self._address = address
        self._tls = tls
        self._selector = selector
        self._greeting = greeting
        self._last_epoch = last_epoch
        self._attempt = count()
        self._backoff = Backoff()
        self._open: Connection | None = None
        self._interest = 0
        self._next_try = 0.0
        self._beat = 0.0
        self._told = ""
        self._bytes = (0, 0)
        self.welcome: m.Welcome | None = None
        """The receiver's, while the session is open."""
        self.waiting_for = ""
        """Why there is no session; empty when there is one."""
        self._watch = open_watch()
        if self._watch is not None:
            selector.register(self._watch.fileno(), selectors.EVENT_READ, self)

    @property
    def connection(self) -> Connection | None:
        """The open session, or None."""
        return self._open if self.welcome is not None else None

    @property
    def wire_bytes(self) -> tuple[int, int]:
        """(sent, received) by all connections so far, counted at the socket."""
        if self._open is None:
            return self._bytes
        transport = self._open.transport
        return self._bytes[0] + transport.bytes_out, self._bytes[1] + transport.bytes_in

    def round_trip(self) -> int:
        """The shortest that the kernel has seen lately, in ns; 0 without a connection."""
        info = self._open.transport.tcp_info() if self._open is not None else None
        return int(info.least_rtt_seconds * 1e9) if info is not None else 0

    def due(self) -> float:
        """Seconds until `turn` has something to do by itself."""
        return max(0.0, (self._next_try if self._open is None else self._beat) - time.monotonic())

    def turn(self) -> list[Heard]:
        """Go on with connecting, greeting, sending and receiving; returns what the receiver said.

        When `connection` turns None, everything in flight is lost. RefusedError if the receiver will never take us.
        """
        if self._watch is not None and self._watch.changed():
            self._backoff.reset()
            self._next_try = 0.0
            if self._open is not None and self._open.stalled():  # a new one is quicker than TCP's own patience
                self._hang_up(None)
        try:
            if self._open is None:
                if time.monotonic() < self._next_try:
                    return []
                self._connect()
            return self._exchange()
        except (LinkLost, RemoteError) as error:
            self.drop(error)
        return []

    def say(self, message: m.Message) -> bool:
        """Say something in the open session; False if there is none (any more)."""
        return self._speak(lambda connection: connection.say(message))

    def say_epoch(self, facts: Facts, payload: Sequence[Piece]) -> bool:
        """Send an epoch in the open session, whose window must have room; False if there is none (any more)."""
        return self._speak(lambda connection: connection.say_epoch(facts, payload))

    def _speak(self, speak: Callable[[Connection], object]) -> bool:
        connection = self.connection
        if connection is None:
            return False
        try:
            speak(connection)
        except (LinkLost, RemoteError) as error:
            self.drop(error)
            return False
        return True

    def drop(self, error: LinkLost | RemoteError) -> None:
        """Hang up without a word, and try again after a pause: a longer one each time that the peer talks nonsense."""
        nonsense = isinstance(error, RemoteError)
        reason = f"{self._address}: {error}" if nonsense else str(error)
        if self.welcome is not None and not nonsense:
            self._backoff.reset()
        self.waiting_for = reason
        if reason != self._told:  # said once, not at every attempt
            log.warning("%s; trying again", reason)
            self._told = reason
        self._hang_up(None)
        self._next_try = time.monotonic() + self._backoff.next()

    def retune(self) -> None:
        """Send what was queued since `turn`, and tell the selector what is waited for."""
        if self._open is None:
            return
        try:
            self._open.flush()
        except (LinkLost, RemoteError) as error:
            self.drop(error)
            return
        interest = self._open.interest()
        if interest != self._interest:
            self._selector.modify(self._open.fileno(), interest, self)
            self._interest = interest

    def close(self, reason: str) -> None:
        """Say goodbye and hang up."""
        self._hang_up(reason)
        if self._watch is not None:
            self._selector.unregister(self._watch.fileno())
            self._watch.close()

    def _connect(self) -> None:
        try:
            endpoints = resolve(self._address)
        except EnvironmentFault as error:
            raise LinkLost(str(error)) from None
        require_tls(self._address, endpoints, self._tls)  # a name may mean another host than it did
        transport = connect(endpoints[next(self._attempt) % len(endpoints)], self._tls)
        self._open = Connection(transport, Party.SENDER, self._last_epoch())
        self._interest = transport.interest()
        self._selector.register(transport.fileno(), self._interest, self)
        self._beat = 0.0
        self._open.say(self._greeting())

    def _exchange(self) -> list[Heard]:
        connection = self._open
        assert connection is not None
        connection.flush()
        heard: list[Heard] = []
        for message in connection.hear():
            if isinstance(message, m.Welcome):
                self.welcome = message
                self.waiting_for = self._told = ""
                log.info("connected to %s", self._address)
            elif isinstance(message, m.Refuse):
                if message.permanent:
                    self._hang_up(None)
                    raise RefusedError(message.reason)
                raise LinkLost(f"{self._address} refuses for now: {message.reason}")
            elif isinstance(message, m.Bye):
                raise LinkLost(f"{self._address} said goodbye: {message.reason}")
            else:
                heard.append(message)
        if time.monotonic() >= self._beat:
            self._beat = time.monotonic() + connection.beat()
        return heard

    def _hang_up(self, reason: str | None) -> None:
        self.welcome = None
        if self._open is not None:
            self._selector.unregister(self._open.fileno())
            self._open.close(reason)
            self._bytes = self.wire_bytes
            self._open = None

"""The receiver's end of the link: who has connected, and which of them is the session.

Takes an address; listens, hands on what each connection says, and ends whatever breaks the protocol or is lost. Who is
let in, the caller decides. At most GREETERS connections have not been; then one of them makes room. Driven by a
selector loop; never blocks.
"""

from __future__ import annotations

import logging
import selectors
import ssl
from collections.abc import Callable

from replicator.errors import EnvironmentFault, RefusedError, RemoteError
from replicator.link import message as m
from replicator.link.address import Address
from replicator.link.connection import Connection, Heard, LinkLost, Party
from replicator.link.sockets import accept, listen

log = logging.getLogger(__name__)

GREETERS = 32
"""Connections that may be under way to a greeting at once."""


class Downlink:
    """One receiver's."""

    def __init__(
        self,
        address: Address,
        tls: ssl.SSLContext | None,
        selector: selectors.BaseSelector,
        heard: Callable[[Connection, Heard], None],
    ) -> None:
        """Listen: EnvironmentFault. `heard` may raise RemoteError or LinkLost, which ends the connection."""
        self._tls = tls
        self._selector = selector
        self._heard = heard
        self._listener = listen(address)
        self._greeters: set[Connection] = set()
        self._interests: dict[Connection, int] = {}
        self._bytes = (0, 0)
        self.session: Connection | None = None
        """The one that was let in."""
        selector.register(self._listener, selectors.EVENT_READ, self)

    @property
    def wire_bytes(self) -> tuple[int, int]:
        """(sent, received) by all connections so far, counted at the socket."""
        transports = [connection.transport for connection in self._interests]
        return (
            self._bytes[0] + sum(transport.bytes_out for transport in transports),
            self._bytes[1] + sum(transport.bytes_in for transport in transports),
        )

    def ready(self, what: Connection | Downlink) -> None:
        """The selector says so of a connection, or of those that wait to be accepted."""
        if isinstance(what, Connection):
            self._serve(what)
        else:
            self._accept()

    def admit(self, connection: Connection) -> None:
        """It is the session from now on."""
        self._greeters.discard(connection)
        self.session = connection

    def say(self, message: m.Message) -> None:
        """Say something in the session, if there is one."""
        if self.session is not None:
            try:
                self.session.say(message)
            except (LinkLost, RemoteError) as error:
                self.end(self.session, str(error), logging.INFO)

    def end(self, connection: Connection, reason: str, level: int) -> None:
        """It has ended, or must: hang up without a word."""
        log.log(level, "%s: %s", connection.transport.peer, reason)
        self.drop(connection, None)

    def drop(self, connection: Connection, reason: str | None) -> None:
        """Hang up, with a word if there is one."""
        if self._interests.pop(connection, None) is None:
            return
        self._selector.unregister(connection.fileno())
        self._greeters.discard(connection)
        if connection is self.session:
            self.session = None
        connection.close(reason)
        sent, received = self._bytes
        self._bytes = sent + connection.transport.bytes_out, received + connection.transport.bytes_in

    def drop_all(self, reason: str) -> None:
        """Hang up on everybody."""
        for connection in list(self._interests):
            self.drop(connection, reason)

    def beat(self) -> None:
        """Give signs of life, and miss the others'. To be called a few times a second."""
        for connection in list(self._interests):
            try:
                connection.beat()
            except (LinkLost, RemoteError, RefusedError) as error:
                self.end(connection, str(error), logging.INFO)

    def retune(self) -> None:
        """Send what was queued, and tell the selector what is waited for."""
        for connection in list(self._interests):
            try:
                connection.flush()
            except (LinkLost, RemoteError, RefusedError) as error:
                self.end(connection, str(error), logging.INFO)
                continue
            interest = connection.interest()
            if interest != self._interests[connection]:
                self._selector.modify(connection.fileno(), interest, connection)
                self._interests[connection] = interest

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()

    def _accept(self) -> None:
        try:
            transport = accept(self._listener, self._tls)
        except EnvironmentFault as error:
            log.error("%s", error)
            return
        if transport is None:
            return
        connection = Connection(transport, Party.RECEIVER)
        self._interests[connection] = connection.interest()
        self._selector.register(connection.fileno(), self._interests[connection], connection)
        self._greeters.add(connection)
        if len(self._greeters) > GREETERS:
            self.drop(next(iter(self._greeters)), None)

    def _serve(self, connection: Connection) -> None:
        try:
            connection.flush()
            for heard in connection.hear():
                self._heard(connection, heard)
                if connection not in self._interests:
                    return
        except (LinkLost, RefusedError) as error:
            self.end(connection, str(error), logging.INFO)
        except RemoteError as error:
            self.end(connection, str(error), logging.WARNING)

"""A receiver that speaks the protocol, acknowledges everything, keeps nothing, and answers questions as it likes."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from replicator.errors import RsyncfsError
from replicator.link import message as m
from replicator.link.address import Address
from replicator.link.connection import Connection, Party
from replicator.link.epoch import Epoch
from replicator.link.sockets import accept, listen
from replicator.model import Answer


class Liar:
    """Listens on loopback; a context manager. `lie` makes the body of an answer from that of a question."""

    def __init__(self, lie: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._lie = lie
        self._listener = listen(Address("127.0.0.1", 0))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.lies = 0
        """Questions answered so far."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                transport = accept(self._listener)
                if transport is not None:
                    self._converse(Connection(transport, Party.RECEIVER))

    def _converse(self, connection: Connection) -> None:
        try:
            while not self._stopping.is_set():
                select.select([connection.fileno()], [], [], 0.05)
                for heard in connection.hear():
                    self._reply(connection, heard)
                connection.flush()
        except RsyncfsError:
            pass
        finally:
            connection.close()

    def _reply(self, connection: Connection, heard: object) -> None:
        match heard:
            case m.Hello() if not connection.session.closed:
                connection.say(m.Welcome(replica="liar", empty=False))
            case Epoch(facts, _):
                connection.say(m.Applied(Answer(facts.epoch)))
                connection.say(m.Durable(facts.epoch))
            case m.Check(request, body):
                self.lies += 1
                connection.say(m.Checked(request, self._lie(body)))

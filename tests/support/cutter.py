"""A proxy that ends a connection after an exact number of bytes, and lets the next one through.

Takes `Cut`s, as many as one likes; the connection that next brings a byte takes the first of them, and counts from
there; when it has been cut, the next connection takes the next. What was counted has reached the other end's socket
before the end comes. Without a cut it is a `CountingProxy`.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import selectors
import socket
import struct
import termios
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

from tests.support.proxy import CHUNK, CountingProxy

Direction = Literal["out", "back"]
"""Towards the receiver, or from it."""
End = Literal["rst", "fin"]
"""With a reset on both sides, or as if both had said all that they had to say."""

_PATIENCE = 0.3
"""Seconds that a side may take to read what was counted, or to hang up as well."""


@dataclass(frozen=True)
class Cut:
    """Relay `after` more bytes in one direction, no byte more, then end."""

    direction: Direction
    after: int
    how: End = "rst"


class CuttingProxy(CountingProxy):
    """See the module; a context manager."""

    def __init__(self, host: str, port: int) -> None:
        self._cuts: deque[Cut] = deque()
        self.made = 0
        """Cuts so far."""
        super().__init__(host, port)

    def cut_after(self, *cuts: Cut) -> None:
        """Add to what is to be done."""
        self._cuts.extend(cuts)

    def forget_cuts(self) -> None:
        """What was not begun is not done."""
        self._cuts.clear()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        cut: Cut | None = None
        left = 0
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    source, sink = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    if cut is None and self._cuts:
                        cut = self._cuts.popleft()
                        left = cut.after
                    counted = cut is not None and (cut.direction == "out") == (source is client)
                    if not counted or left:
                        data = source.recv(min(CHUNK, left) if counted else CHUNK)
                        if not data:
                            return
                        self._count(len(data), outwards=source is client)
                        sink.sendall(data)
                        left -= len(data) if counted else 0
                    if counted and not left:
                        assert cut is not None
                        self._end(client, server, cut.how)
                        return

    def _count(self, number: int, *, outwards: bool) -> None:
        if outwards:
            self.out += number
        else:
            self.back += number

    def _end(self, client: socket.socket, server: socket.socket, how: End) -> None:
        deadline = time.monotonic() + _PATIENCE
        if how == "rst":
            while any(map(_unsent, (client, server))) and time.monotonic() < deadline:
                time.sleep(0.001)
            for connection in (client, server):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            for connection in (client, server):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
            for connection in (client, server):
                _drain(connection, deadline)
        self.made += 1


def _unsent(connection: socket.socket) -> int:
    """Bytes that the other end's kernel has not taken."""
    number = array.array("i", [0])
    try:
        fcntl.ioctl(connection, termios.TIOCOUTQ, number)
    except OSError:
        return 0
    return number[0]


def _drain(connection: socket.socket, deadline: float) -> None:
    """Until the other end hangs up: a close with something unread would be a reset."""
    with contextlib.suppress(OSError):
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(CHUNK):
                return

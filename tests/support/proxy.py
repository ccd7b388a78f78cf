"""A TCP proxy on loopback that counts the bytes of both directions and can stall or cut every connection.

Takes the address to forward to; listens on a port of its own. Counts payload bytes as they cross the sockets, which is
what both programs cannot lie about. One thread, no buffering beyond one read a direction.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import Self

CHUNK = 1 << 16


class CountingProxy:
    """Forward connections to (host, port) until closed; `out` counts towards it, `back` from it."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.out = 0
        self.back = 0
        self.accepted = 0
        self.stalled = threading.Event()
        """Set when nothing comes back any more."""
        self._most_back: int | None = None
        self._open = True
        self._forward = True
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Close every connection, and every new one at once, until `mend`."""
        with self._lock:
            self._forward = False
            self._most_back = None
            self._drop()

    def mend(self) -> None:
        """Forward again."""
        with self._lock:
            self._forward = True

    def stall(self, after: int) -> None:
        """Let `after` more bytes, about, come back, and then none, until `cut`."""
        self.stalled.clear()
        self._most_back = self.back + after

    def close(self) -> None:
        """Close everything and end the thread."""
        self._open = False
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            self._drop()
        self._thread.join(5)

    def _drop(self) -> None:
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        while self._open:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                forward = self._forward
            if not forward:
                client.close()
                continue
            self.accepted += 1
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._target, timeout=5) as server:
            server.settimeout(None)
            for connection in (client, server):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {client, server}
            try:
                self._pump(client, server)
            finally:
                with self._lock:
                    self._sockets -= {client, server}

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                if self._most_back is not None and self.back >= self._most_back and not self.stalled.is_set():
                    self.stalled.set()
                    selector.unregister(server)
                for key, _ in selector.select():
                    source, sink = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    data = source.recv(CHUNK)
                    if not data:
                        return
                    if source is client:
                        self.out += len(data)
                    else:
                        self.back += len(data)
                    sink.sendall(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

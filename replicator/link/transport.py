"""One TCP connection for a selector loop: never blocks, TLS or not, counts its bytes.

Takes parts of encoded messages to send and gives frames. Sending gathers the queued parts into one system call;
receiving puts a big payload where it stays. Says nothing about order and meaning: see session.py.
"""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from replicator.errors import RemoteError, RsyncfsError
from replicator.link.frame import Buffer, Decoder, Frame
from replicator.link.tls import TlsPipe

CONNECT_TIMEOUT = 10.0
"""Seconds that connecting and the TLS handshake may take together."""

USER_TIMEOUT = 30.0
"""Seconds that sent bytes may stay unacknowledged by the peer's kernel."""

MAX_QUEUE = 256 * 2**20
"""Bytes waiting to be sent; more means that the peer asks without reading the answers."""

GATHER = 64
"""Parts given to one system call."""

GONE = {
    errno.ECONNRESET: "the peer closed the connection abruptly",
    errno.EPIPE: "the peer closed the connection",
    errno.ETIMEDOUT: "the peer's host does not answer any more",
    errno.ECONNREFUSED: "nothing listens there; is `rsyncfs receive` running?",
}
"""How a connection ends, for people."""


class LinkLost(RsyncfsError):
    """The connection ended or never came to be. Trying again can mend it."""


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """What the kernel knows of the connection (TCP_INFO)."""

    rtt_seconds: float
    least_rtt_seconds: float
    """Of the last minutes: the path without queues."""
    retransmits: int
    """Segments sent again since the connection began."""
    unacked_segments: int
    unsent_bytes: int
    last_ack_seconds: float
    """Since anything was acknowledged."""
    timeouts: int
    """Times in a row that the kernel has waited in vain for an acknowledgement; 0 while all is well."""


class Transport:
    """Bytes of one connected, or connecting, socket, which it owns.

    In a loop: register `fileno()` for `interest()`; when it is readable call `receive()`, when writable `flush()`.
    After `send()` call `flush()` and look at `interest()` again. LinkLost and RemoteError end it: call `close()`.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        tls: TlsPipe | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        connecting: bool = False,
    ) -> None:
        sock.setblocking(False)
        _tune(sock)
        self._sock = sock
        self._tls = tls
        self._decoder = Decoder()
        self._queue: deque[memoryview] = deque()
        self._sealed = memoryview(b"")  # TLS records being sent
        self._failure: RsyncfsError | None = None
        self._connecting = connecting
        self._deadline = clock() + CONNECT_TIMEOUT
        self._clock = clock
        self.peer = peer
        """Its address, for people."""
        self.queued = 0
        """Bytes given to `send()` that the kernel has not taken yet."""
        self.bytes_in = 0
        """Payload bytes of the socket, with TLS its records."""
        self.bytes_out = 0

    def fileno(self) -> int:
        """The socket's descriptor; it stays the same until `close()`."""
        return self._sock.fileno()

    @property
    def ready(self) -> bool:
        """Whether it is connected and, with TLS, both sides are authenticated."""
        return not self._connecting and (self._tls is None or self._tls.ready)

    def interest(self) -> int:
        """The selectors.EVENT_* mask to wait for."""
        if self._connecting:
            return selectors.EVENT_WRITE
        if self._failure is not None:  # to be raised: do not wait for bytes that may never come
            return selectors.EVENT_READ | selectors.EVENT_WRITE
        write = bool(self._sealed) or (self.queued > 0 and self.ready)
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if write else 0)

    def late(self) -> float | None:
        """Seconds left for becoming ready, below 0 if too late; None once it is."""
        return None if self.ready else self._deadline - self._clock()

    def send(self, parts: Iterable[Buffer]) -> None:
        """Queue parts; they must not change until they are sent. RemoteError if far too much waits already."""
        for part in parts:
            view = memoryview(part)
            if len(view):
                self._queue.append(view)
                self.queued += len(view)
        if self.queued > MAX_QUEUE:
            raise RemoteError(f"{self.peer} does not read what it is sent: {self.queued} bytes wait for it")

    def flush(self) -> None:
        """Send what the kernel takes without waiting. LinkLost, RemoteError or RefusedError as `receive()`.

        If the peer closed an established connection, `receive()` says so, after what the peer said before.
        """
        self._guard(self._flush)

    def receive(self, budget: int = 4 * 2**20) -> list[Frame]:
        """Frames that have arrived whole, after reading about `budget` bytes at most. Empty if there are none yet.

        What arrived before an error or the end is given first; the next call raises LinkLost (the connection is
        gone), RemoteError (garbage, a damaged frame) or RefusedError (certificates).
        """
        frames: list[Frame] = []
        try:
            self._guard(lambda: self._receive(budget, frames))
        except RsyncfsError:
            if not frames:
                raise
        return frames

    def tcp_info(self) -> TcpInfo | None:
        """The kernel's view; None if the connection is gone."""
        try:
            data = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            return None
        if len(data) < 152:
            return None
        word = struct.unpack_from("=24I", data, 8)
        unsent, least = struct.unpack_from("=2I", data, 144)
        return TcpInfo(word[15] / 1e6, least / 1e6, word[23], word[4], unsent, word[12] / 1e3, data[2])

    def close(self) -> None:
        """Give everything back. What is still queued is lost, what the kernel has taken is delivered if it can be."""
        self._mute()
        try:
            self._sock.shutdown(socket.SHUT_WR)
            for _ in range(16):  # closing over unread bytes resets the connection, and our last words with it
                if not self._sock.recv(1 << 20):
                    break
        except OSError:
            pass  # not connected, or nothing to read: there is nothing to save
        self._sock.close()

    def _guard(self, work: Callable[[], None]) -> None:
        """Run `work` unless it failed before; make its errors into ours and remember them."""
        if self._failure is None:
            try:
                work()
            except RsyncfsError as error:
                self._failure = error
            except OSError as error:
                self._failure = LinkLost(f"lost {self.peer}: {GONE.get(error.errno or 0, error.strerror)}")
        if self._failure is not None:
            raise self._failure

    def _established(self) -> bool:
        """Finish connecting; False while it is under way."""
        if self._connecting:
            if not _writable(self._sock):
                return False
            code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                cause = GONE.get(code, os.strerror(code)) if code != errno.ETIMEDOUT else "no answer"
                raise LinkLost(f"cannot connect to {self.peer}: {cause}")
            self._connecting = False
        return True

    def _mute(self) -> None:
        """Drop what waits: nothing can be sent any more. What the peer said last (why it closed) can still be read."""
        self._queue.clear()
        self.queued = 0
        self._sealed = memoryview(b"")

    def _flush(self) -> None:
        if not self._established():
            return
        if self._tls is None:
            self._flush_plain()
        else:
            self._flush_sealed(self._tls)

    def _flush_plain(self) -> None:
        queue = self._queue
        while queue:
            parts = [queue[i] for i in range(min(len(queue), GATHER))]
            try:
                count = self._sock.sendmsg(parts)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                self._mute()
                return
            self.bytes_out += count
            self.queued -= count
            while count:
                if count < len(queue[0]):
                    queue[0] = queue[0][count:]
                    break
                count -= len(queue.popleft())

    def _flush_sealed(self, tls: TlsPipe) -> None:
        """TLS records into the socket, then more of the queue into TLS records, while the socket takes them."""
        if not tls.ready:
            try:
                tls.handshake()
            except RsyncfsError:
                self._last_words(tls)
                raise
        while True:
            if not self._sealed:
                while self._queue and tls.ready and tls.pending_out < TlsPipe.CHUNK:
                    self._seal(tls)
                self._sealed = tls.take()
                if not self._sealed:
                    return
            try:
                count = self._sock.send(self._sealed)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                self._mute()
                return
            self.bytes_out += count
            self._sealed = self._sealed[count:]

    def _seal(self, tls: TlsPipe) -> None:
        """Move the head of the queue into TLS, small parts together so that each does not cost a record."""
        head = self._queue[0]
        if len(head) < TlsPipe.RECORD and len(self._queue) > 1:
            parts, size = [], 0
            while self._queue and size + len(self._queue[0]) <= TlsPipe.RECORD:
                parts.append(self._queue.popleft())
                size += len(parts[-1])
            head = memoryview(b"".join(parts))
        else:
            self._queue.popleft()
            if len(head) > TlsPipe.CHUNK:
                self._queue.appendleft(head[TlsPipe.CHUNK :])
                head = head[: TlsPipe.CHUNK]
        tls.write(head)
        self.queued -= len(head)

    def _receive(self, budget: int, frames: list[Frame]) -> None:
        if not self._established():
            return
        got = 0
        while got < budget:
            try:
                count = self._receive_plain(frames) if self._tls is None else self._receive_sealed(self._tls, frames)
            except BlockingIOError:
                return
            if not count:
                if not self.bytes_in:
                    when = " without a word: if it runs rsyncfs, does only one side have the --tls-* options?"
                else:
                    when = "" if self._decoder.idle else " in the middle of a message"
                raise LinkLost(f"{self.peer} closed the connection{when}")
            got += count
            self.bytes_in += count

    def _receive_plain(self, frames: list[Frame]) -> int:
        count = self._sock.recv_into(self._decoder.buffer())
        if count:
            frames += self._decoder.received(count)
            self._decoder.verify()
        return count

    def _receive_sealed(self, tls: TlsPipe, frames: list[Frame]) -> int:
        """Everything that one read brought is also decrypted: nothing waits where a selector does not see it."""
        data = self._sock.recv(TlsPipe.CHUNK)
        if not data:
            return 0
        tls.feed(data)
        try:
            if not tls.ready:
                tls.handshake()
            while tls.ready:
                count = tls.read_into(self._decoder.buffer())
                if not count:
                    break
                frames += self._decoder.received(count)
                self._decoder.verify()
        except RsyncfsError:
            self._last_words(tls)
            raise
        self._flush_sealed(tls)
        return len(data)

    def _last_words(self, tls: TlsPipe) -> None:
        """Let the peer know why, if the kernel takes it at once."""
        if not self._sealed:
            self._sealed = tls.take()
        if self._sealed:
            try:
                self.bytes_out += self._sock.send(self._sealed)
            except OSError:
                return


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(USER_TIMEOUT * 1000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def _writable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))

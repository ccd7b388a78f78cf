"""A descriptor that lines are written to without ever waiting for who reads them.

Takes bytes of whole lines; gives to the descriptor what it takes at the moment and keeps the rest, up to a limit that
the caller asks about. A descriptor that others share (a terminal, the end of a pipe) is not made non-blocking for them:
it is opened once more. Files on disk take everything at once.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import time
from collections import deque

from replicator.errors import EnvironmentFault

LIMIT = 4 << 20
"""Bytes that are kept."""
PIPE = 1 << 20
"""Bytes that a pipe is made to hold: on a busy machine its reader comes seldom, and takes what is there."""
PIECE = 4096
"""Bytes that a pipe takes whole when poll says that it is writable."""


class Output:
    """The end of a pipe, a terminal, a file. BrokenPipeError from any call but `close` if nobody reads any more."""

    def __init__(self, fd: int, limit: int = LIMIT) -> None:
        """`fd` stays the caller's."""
        self._limit = limit
        self._kept: deque[memoryview] = deque()
        self._bytes = 0
        self._fd, self._patient = _own(fd)

    def fileno(self) -> int:
        """Writable when `flush` has something to do, if it is `behind`."""
        return self._fd

    @property
    def full(self) -> bool:
        """Whether nothing should be added now."""
        return self._bytes >= self._limit

    @property
    def behind(self) -> bool:
        """Whether something is kept."""
        return self._bytes > 0

    def add(self, lines: bytes) -> None:
        """Write whole lines, or keep them."""
        if lines:
            self._kept.append(memoryview(lines))
            self._bytes += len(lines)
            self.flush()

    def flush(self) -> None:
        """Write what is taken now. EnvironmentFault if the lines cannot be stored."""
        while self._kept:
            written = self._write(self._kept[0])
            self._bytes -= written
            if written < len(self._kept[0]):
                self._kept[0] = self._kept[0][written:]
                if not written:
                    return
            else:
                self._kept.popleft()

    def finish(self, seconds: float) -> int:
        """Go on until all is written, or for so long that nothing was taken for `seconds`; how many lines are left."""
        before = self._bytes
        deadline = time.monotonic() + seconds
        while self._kept and time.monotonic() < deadline:
            _writable(self._fd, deadline - time.monotonic())
            self.flush()
            if self._bytes < before:
                before, deadline = self._bytes, time.monotonic() + seconds
        return sum(bytes(part).count(b"\n") for part in self._kept)

    def close(self) -> None:
        """Forget what is kept."""
        os.close(self._fd)

    def _write(self, data: memoryview) -> int:
        try:
            if self._patient and not _writable(self._fd, 0):
                return 0
            return os.write(self._fd, data[:PIECE] if self._patient else data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise
        except OSError as error:
            raise EnvironmentFault(
                f"cannot write what is to be shown: {error.strerror}; free space there, or send it elsewhere"
            ) from error


def _own(fd: int) -> tuple[int, bool]:
    """A descriptor of the same thing, and whether a write to it may block, so that small ones must do."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode):
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE)
        except OSError:  # more than this user may have in pipes: then the reader has to be quicker
            pass
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{fd}", flags), False
        except OSError:  # a terminal of somebody else, or nobody reads the pipe: that will show
            pass
    return os.dup(fd), not stat.S_ISREG(mode)


def _writable(fd: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return bool(poller.poll(max(0.0, seconds) * 1000))

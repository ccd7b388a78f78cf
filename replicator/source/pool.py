"""Worker threads that read, so that a slow disk or a held lock stops nothing else.

Takes flushes, gives their outcomes, in any order. The descriptor is readable while outcomes wait.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from queue import SimpleQueue

from replicator.source.flight import Flush
from replicator.source.read import Outcome, Reader

BATCH = 16
"""Flushes given to a worker at once when there are many: a hand-over costs more than reading a small file."""


class ReadPool:
    """A few threads around a `Reader`."""

    def __init__(self, reader: Reader, threads: int = 4) -> None:
        self._reader = reader
        self._jobs: SimpleQueue[list[Flush] | None] = SimpleQueue()
        self._done: deque[Outcome] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.busy = 0
        """Flushes that are out."""
        self._threads = [threading.Thread(target=self._work, name=f"read-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def fileno(self) -> int:
        """For a selector."""
        return self._wake

    def submit(self, flushes: list[Flush]) -> None:
        """Have these read."""
        self.busy += len(flushes)
        for start in range(0, len(flushes), BATCH):
            self._jobs.put(flushes[start : start + BATCH])

    def collect(self) -> list[Outcome]:
        """What has been read since the last call."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return []
        outcomes = []
        while self._done:
            outcomes.append(self._done.popleft())
        self.busy -= len(outcomes)
        return outcomes

    def close(self) -> None:
        """Let the threads end; one that hangs in the kernel is left to itself."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(timeout=1.0)
        if not any(thread.is_alive() for thread in self._threads):
            os.close(self._wake)

    def _work(self) -> None:
        while (flushes := self._jobs.get()) is not None:
            for flush in flushes:
                self._done.append(self._reader.read(flush))
            os.eventfd_write(self._wake, 1)

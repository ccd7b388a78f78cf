"""One worker thread for jobs that the loop must not wait for; their results come back into the loop.

Takes functions; calls back, in the loop, with what they returned. A job that raises gives its exception to the
callback.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Job = tuple[Callable[[], Any], Callable[[Any], None]]


class Worker:
    """Jobs run one after the other."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._done: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """For a selector: readable while results wait."""
        return self._wake

    def submit(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run `job` in the thread, then `done(result or exception)` in the loop."""
        self._jobs.put((job, done))

    def collect(self) -> None:
        """Call back for every job that has ended."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return
        while self._done:
            done, result = self._done.popleft()
            done(result)

    def join(self) -> None:
        """Wait until every job has ended; no more may be submitted. Their results are there for `collect`."""
        self._jobs.put(None)
        self._thread.join()

    def close(self) -> None:
        """Let the thread end after its job; one that hangs in the kernel is left to itself."""
        self._jobs.put(None)
        self._thread.join(timeout=1.0)
        if not self._thread.is_alive():
            os.close(self._wake)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            try:
                result: Any = job()
            except Exception as error:  # noqa: BLE001 - it is handed to whoever asked
                result = error
            self._done.append((done, result))
            os.eventfd_write(self._wake, 1)

"""When the replica is made durable: again and again while there is something, in a worker thread.

Takes the numbers of epochs that were applied; tells which are durable, and what of them is not. A disk that is slow to
sync is not asked all the time. When a sync fails, it is tried again; if what was written may be lost, all that is not
durable must come again, and until a sync succeeds nothing that is taken would be durable (`sick`). How it is made
durable: mirror/durability.py. Driven by the receiver's loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from replicator.mirror.durability import SyncJob
from replicator.mirror.mirror import Mirror
from replicator.model import Refusal
from replicator.observe.log import Seldom
from replicator.observe.metrics import ReceiverMetrics
from replicator.work import Worker

log = logging.getLogger(__name__)

CREDIT = 0.5
"""Seconds of rest that count towards the pauses after syncs."""


class Syncing:
    """One replica's."""

    def __init__(
        self,
        mirror: Mirror,
        root: Path,
        metrics: ReceiverMetrics,
        durable: Callable[[int, int, tuple[Refusal, ...]], None],
        lost: Callable[[str], None],
    ) -> None:
        """`durable(before, number, lost)`: epochs up to `number`, up to `before` known already, are durable but for
        what is `lost`; `lost(why)`: all that is not durable must come again."""
        self._mirror = mirror
        self._root = root
        self._metrics = metrics
        self._durable = durable
        self._lost = lost
        self._worker = Worker()
        self._unsynced = 0
        self._running = self._ending = False
        self._next = 0.0
        self._failures = Seldom(10.0)
        self.sick: str | None = None
        """Why nothing that is taken would be durable; None if it would."""

    def fileno(self) -> int:
        """For a selector: readable when `turn` has something to do."""
        return self._worker.fileno()

    def owe(self, number: int) -> None:
        """This epoch was applied."""
        self._unsynced = number

    @property
    def busy(self) -> bool:
        """Whether something that was applied is not durable."""
        return bool(self._unsynced or self._running)

    def patience(self, most: float) -> float:
        """Seconds until `turn` has something to do by itself; at most so many."""
        if self._unsynced and not self._running:
            return max(0.0, min(most, self._next - time.monotonic()))
        return most

    def turn(self) -> None:
        """Tell what has become durable, and begin the next sync if it is time."""
        self._worker.collect()
        if self._unsynced and not self._running and time.monotonic() >= self._next:
            self._unsynced, self._running = 0, True
            job = self._mirror.start_sync()
            self._worker.submit(lambda: _timed(job), lambda done: self._synced(job, done))

    def finish(self) -> None:
        """Wait for the sync that is under way; no other may begin."""
        self._ending = True
        self._worker.join()
        self._worker.collect()

    def close(self) -> None:
        """Let the thread end."""
        self._worker.close()

    def _synced(self, job: SyncJob, done: float | Exception) -> None:
        if isinstance(done, Exception):
            raise done
        commit = self._mirror.seal(job)
        if commit is None:
            self._finish(job, done)
        elif self._ending:
            self._finish(job, done + _timed(commit))
        else:
            self._worker.submit(lambda: _timed(commit), lambda more: self._committed(job, done, more))

    def _committed(self, job: SyncJob, seconds: float, more: float | Exception) -> None:
        if isinstance(more, Exception):
            raise more
        self._finish(job, seconds + more)

    def _finish(self, job: SyncJob, seconds: float) -> None:
        self._running = False
        self._next = following(self._next, time.monotonic(), seconds)
        self._metrics.sync_seconds.observe(seconds)
        before = self._mirror.durable_epoch
        number, lost = self._mirror.finish_sync(job)
        if job.error is not None:
            self._failed(job)
        elif self.sick is not None:
            log.warning("%s can be synced again", self._root)
            self.sick = None
        self._metrics.durable_epoch.set(number)
        self._durable(before, number, lost)

    def _failed(self, job: SyncJob) -> None:
        trouble = self._mirror.trouble or ""
        if self._failures.count(1):
            log.error("%s; trying again", trouble)
        self._unsynced = self._unsynced or max(job.epoch, 1)
        self._next = time.monotonic() + 1.0
        if job.failed:
            self.sick = trouble
            self._lost(trouble)


def following(due: float, ended: float, seconds: float) -> float:
    """When the next sync may begin, after one that was `due`, has `ended`, and took so many seconds.

    In the long run there is as long a pause as it took, a second at most; after some rest the next may follow at once.
    """
    return max(due + seconds, ended - CREDIT) + min(1.0, seconds)


def _timed(job: Callable[[], None]) -> float:
    """Run a job; the seconds that it took."""
    started = time.monotonic()
    job()
    return time.monotonic() - started

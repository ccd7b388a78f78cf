"""The sender's looks: names that may have changed are looked up, and what is found goes to the outbox.

Takes a source and what the resolver wants looked at; beside reading.py, which does so with content. Driven by the
sender's loop, which waits for it: a look is a system call, and there are at most LOOKS in a turn.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from replicator.intake import Intake
from replicator.journal.journal import Journal
from replicator.model import FileId, Slot
from replicator.source import snapshot
from replicator.source.look import SourceNamespace
from replicator.source.outbox import Outbox
from replicator.tree.handles import SourceRoot

log = logging.getLogger(__name__)

LOOKS = 512
"""In a turn, at most; fewer while directories are so busy that a look waits."""
FEWEST = 16
LONG = 100_000_000
"""ns that a turn of looks may take: the loop has others to hear."""
BACKLOG = 2048
"""Dirty inodes above which the first scan pauses."""
HELD = 5_000_000
"""ns between looks at names that are only held back."""
AGAIN = 1_000_000_000
"""ns until a look is tried again that failed."""
SECOND = 1_000_000_000


def _next(most: int, took: int) -> int:
    """How many looks the next turn may make, after one of up to `most` that took so many ns."""
    if took > LONG:
        return max(FEWEST, most // 2)
    return min(LOOKS, 2 * most) if took < LONG // 4 else most


class Looking:
    """One sender's. `describe` names a slot or an inode for people. Times are CLOCK_MONOTONIC in ns."""

    def __init__(
        self,
        source: SourceRoot,
        outbox: Outbox,
        intake: Intake,
        journal: Journal,
        describe: Callable[[Slot | FileId], str],
    ) -> None:
        self._outbox = outbox
        self._intake = intake
        self._journal = journal
        self._describe = describe
        self._view = SourceNamespace(source)
        self._most = LOOKS
        self._paused = 0
        self._last = 0

    def patience(self) -> float:
        """Seconds until `turn` has something to do."""
        resolver = self._outbox.resolver
        if resolver.workable and time.monotonic_ns() >= self._paused:
            return 0.0
        return HELD / SECOND if resolver.waiting else math.inf

    def turn(self, now: int) -> None:
        """Look at some of what may have changed."""
        resolver = self._outbox.resolver
        if now < self._paused or not resolver.pending:
            return
        if not resolver.workable and now - self._last < HELD:
            return
        if not resolver.complete and len(self._outbox.table) > BACKLOG:
            return
        self._last = now
        begun = time.monotonic_ns()
        changes = resolver.resolve(self._view, now, self._most)
        self._most = _next(self._most, time.monotonic_ns() - begun)
        self._journal.marks(snapshot.found(changes), now)
        self._outbox.changed(changes, time.monotonic_ns())
        # A look may have seen more than was drained: a name must not show what the ring will say.
        self._intake.take_records()
        for where, error in changes.failed[:1]:
            log.error("cannot look at %s: %s; trying again", self._describe(where), error.strerror)
            self._paused = now + AGAIN

    def close(self) -> None:
        """Close what was opened to look."""
        self._view.close()

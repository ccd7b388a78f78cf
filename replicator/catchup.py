"""What changed while nobody watched, or was not told: found, and handed to the outbox bit by bit.

A *survey* compares a scan of all inodes with the index: files that were not changed are not touched. A *sweep* offers
everything that is in the index to the replica for comparison: for a replica that is not what the index says. Both go on
beside live replication, which sees what changes meanwhile. While one is under way it holds a token, so that `wait`
waits for it. Driven by the sender's loop; the scan runs in a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np

from replicator import syscalls
from replicator.errors import EnvironmentFault
from replicator.model import FileId
from replicator.scan import fetch_ahead, scan
from replicator.source.outbox import Outbox
from replicator.tree.handles import SourceRoot
from replicator.tree.stamps import Differences
from replicator.tree.store import IndexStore
from replicator.work import Worker

log = logging.getLogger(__name__)

BACKLOG: Final = 4096
"""Dirty inodes above which no more are added."""
STEP: Final = 4096
"""Inodes at a time."""

# What a suspect is suspected of: bits, for there may be millions.
_CHANGED, _CONTENT, _NUMBERS_TOO, _MISSING = 1, 2, 4, 8


@dataclass(slots=True)
class Findings:
    """What a survey found."""

    changed: list[FileId] = field(default_factory=list)
    """Not as their stamps say, or without one that can be relied on."""
    missing: list[FileId] = field(default_factory=list)
    complete: bool = False
    """Every inode was looked at."""
    mark: str | None = None
    """From when on the next survey need look, if the filesystem can tell."""
    scanned: int = 0
    seconds: float = 0.0


def survey(source: SourceRoot, store: IndexStore, how: str) -> Findings:
    """Compare all inodes of the source's filesystem with the index. EnvironmentFault, OSError, sqlite3.Error."""
    started = time.monotonic()
    syscalls.syncfs(source.read_fd)
    found = Findings()
    by_root = {root: Differences(store.stamps(root)) for root in store.roots()}
    since = (store.meta("since") or None) if how == "auto" else None
    rows = scan(source, how, since)
    for batch in rows:
        found.scanned += len(batch)
        for root, differences in by_root.items():
            within = batch if len(by_root) == 1 and not root else batch[batch["root"] == np.uint64(root)]
            if len(within):
                found.changed += differences.changed(within)
    for differences in by_root.values():
        if rows.complete:
            found.missing += differences.missing()
        else:
            found.changed = list(dict.fromkeys([*found.changed, *differences.unsure()]))
    found.complete, found.mark = rows.complete, rows.mark()
    found.seconds = time.monotonic() - started
    return found


class Catchup:
    """One sender's."""

    def __init__(self, source: SourceRoot, store: IndexStore, outbox: Outbox, how: str) -> None:
        """`how`: "auto" or "walk", see scan."""
        self._source = source
        self._store = store
        self._outbox = outbox
        self._how = how
        self._worker = Worker()
        self._surveying = False
        self._again = False
        self._token: int | None = None
        self._suspects: dict[FileId, int] = {}
        """To be handed over; what several surveys find of an inode meanwhile is said once."""
        self._sweeps: list[Iterator[None]] = []

    def fileno(self) -> int:
        """For a selector: readable when `collect` has something to do."""
        return self._worker.fileno()

    @property
    def busy(self) -> bool:
        """Whether something is still to be found or handed over."""
        return self._token is not None

    def survey(self, *, content: bool = True) -> None:
        """Find what is not as the index says. Hooks must be in place: what changes from now on, it may miss.

        Of who is not in the index yet nothing is known: without `content`, what is in their files is.
        """
        self._hold()
        for id in self._not_vouched_for():
            self._suspect(id, content=content)
        self._outbox.news.doubting = True
        if self._surveying:  # it may have passed by what this one is about
            self._again = True
            return
        self._surveying = True
        source, store, how = self._source, self._store, self._how
        self._worker.submit(lambda: survey(source, store, how), self._surveyed)

    def prepare(self) -> None:
        """A survey is to be expected: begin to read what it needs."""

        def read() -> None:
            fetching = threading.Thread(target=fetch_ahead, args=(source, how), daemon=True)
            fetching.start()
            store.preload()
            fetching.join()

        source, store, how = self._source, self._store, self._how
        self._worker.submit(read, lambda _: None)  # what went wrong, the survey will say

    def sweep(self) -> None:
        """Offer everything to the replica."""
        self._hold()
        self._sweeps.append(self._everything())

    def turn(self, now: int) -> None:
        """Hand some of it over, if there is room."""
        self._worker.collect()
        while len(self._outbox.table) < BACKLOG:
            if self._suspects:
                self._hand_over()
            elif not self._sweeps:
                break
            elif next(self._sweeps[0], self) is self:
                del self._sweeps[0]
        if self._token is not None and not self._suspects and not self._sweeps and not self._surveying:
            self._outbox.generations.release(self._token)
            self._token = None
            self._outbox.news.doubting = False

    def mark(self, marked: Callable[[str], None]) -> None:
        """Give the mark from which a survey could begin, if everything from before were known; if there is one."""

        def found(mark: str | Exception | None) -> None:
            if isinstance(mark, str):
                marked(mark)

        source, how = self._source, self._how
        self._worker.submit(lambda: scan(source, how).mark(), found)

    def close(self) -> None:
        """End it; a scan that hangs is left to itself."""
        self._worker.close()

    def _hold(self) -> None:
        if self._token is None:
            self._token = self._outbox.generations.hold()

    def _surveyed(self, found: Findings | Exception) -> None:
        self._surveying = False
        if isinstance(found, EnvironmentFault):
            raise found
        if isinstance(found, Exception):
            raise EnvironmentFault(
                f"cannot scan the inodes of {self._source.path}: {found}; check the filesystem, or use --scan walk"
            ) from found
        log.info(
            "%d inodes scanned in %.2f s: %d changed, %d gone",
            found.scanned,
            found.seconds,
            len(found.changed),
            len(found.missing),
        )
        # The inodes whose numbers others have now are among the missing.
        for id in found.changed:
            self._suspect(id, content=True, numbers=found.complete)
        for id in found.missing:
            self._suspects[id] = self._suspects.get(id, 0) | _MISSING
        if self._again:
            self._again = False
            self.survey()
        else:
            self._outbox.outsiders.remember()

    def _not_vouched_for(self) -> Iterator[FileId]:
        """Members that the index may not have as they are; the source itself is as good a member there as others."""
        index = self._outbox.index
        for id in index.changed():
            if id != index.root or index.pending(id) or index.size(id) is None:
                yield id

    def _suspect(self, id: FileId, *, content: bool, numbers: bool = False) -> None:
        of = _CHANGED | (_CONTENT if content else 0) | (0 if numbers else _NUMBERS_TOO)
        self._suspects[id] = self._suspects.get(id, 0) | of

    def _hand_over(self) -> None:
        """The oldest STEP suspects."""
        suspicion, now = self._outbox.suspicion, time.monotonic_ns()
        for id in list(islice(self._suspects, STEP)):
            of = self._suspects.pop(id)
            if of & _CHANGED:
                numbers = not of & _NUMBERS_TOO
                suspicion.suspect(id, now, self._token, content=bool(of & _CONTENT), numbers=numbers)
            if of & _MISSING:
                suspicion.missed(id, now, self._token)

    def _everything(self) -> Iterator[None]:
        """Directories first, since a replica's file is recognised by its name in one. Who becomes a member from now on
        is told by the look that found it."""
        index, outbox = self._outbox.index, self._outbox
        outbox.suspicion.offer(index.root, time.monotonic_ns(), self._token)
        lately = list(index.changed())
        for directories in (True, False):
            after = b""
            while True:
                ids, after = self._store.ids(after, STEP, directories=directories)
                ids += [id for id in lately if index.is_directory(id) == directories]
                lately = [id for id in lately if index.is_directory(id) != directories]
                for id in ids:
                    outbox.suspicion.offer(id, time.monotonic_ns(), self._token)
                yield
                if not after:
                    break

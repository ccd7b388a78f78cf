"""What a sender remembers over its own death: the index and the journal, kept in step.

Takes what is said and what became durable; gives a successor the index, what was owed, and the sender's own numbers.
The index takes over what is durable in a worker thread; only then does the journal let go of it. Driven by the loop,
which does not wait for the disk here: the journal's appends end in the kernel's memory.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from replicator.errors import EnvironmentFault
from replicator.journal.journal import Journal, sync
from replicator.journal.marks import Mark
from replicator.model import FileId
from replicator.source.outbox import Outbox
from replicator.tree.index import TreeIndex
from replicator.tree.store import Committed, IndexStore, Told
from replicator.work import Worker

log = logging.getLogger(__name__)

_AGAIN: Final = 5_000_000_000  # ns
_SYNC: Final = 1_000_000_000  # ns
_EPOCHS: Final = 1 << 24
"""Numbers of epochs that are reserved at a time."""


class Ledger:
    """One sender's. Times are CLOCK_MONOTONIC in ns."""

    def __init__(self, directory: Path, source: dict[str, Any]) -> None:
        """`source`: what the index must belong to (root, excluded patterns, ...); otherwise it is begun anew.

        EnvironmentFault if the state directory fails.
        """
        self._directory = directory
        try:
            self.store = IndexStore(directory / "index.sqlite")
            about = orjson.dumps(source, option=orjson.OPT_SORT_KEYS).decode()
            self.known = self.store.meta("source") == about and self.store.meta("scanned") == "1"
            """Whether the index is complete: of a source that was in sync once, and of no other."""
            if not self.known:
                self.store.clear()
                self.store.set_meta({"source": about, "instance": str(secrets.randbits(63))})
            self.instance = int(self.store.meta("instance") or 0)
            self.durable = int(self.store.meta("durable") or 0)
            self.mistrusted = self.store.meta("mistrusted") == "1"
            self.last_epoch = int(self.store.meta("epochs") or 0)
            """No later epoch was ever sent."""
            self._reserved = self.last_epoch
            self._mark = self._marked = self.store.meta("since") or ""
            self.reserve(self.last_epoch)
        except (sqlite3.Error, OSError) as error:
            raise _fault(directory, error) from error
        self._worker = Worker()
        self._writing = self._syncing = False
        self._next_write = self._next_sync = 0
        self._told: list[Told] = []
        self._scanned = self.known
        self._index: TreeIndex | None = None
        self._journal: Journal | None = None
        self.trouble = ""
        """Why the index is not written; empty if it is."""

    @property
    def unwritten(self) -> Sequence[Told]:
        """What is durable on the replica and being written to the index, or to be written again."""
        return self._told

    def fileno(self) -> int:
        """For a selector: readable when `collect` has something to do."""
        return self._worker.fileno()

    def index(self, root: FileId) -> TreeIndex:
        """The names that the replica durably has."""
        self.store.settle(root)
        self._index = TreeIndex(root, self.store)
        return self._index

    def journal(self, outbox: Outbox, owed: Callable[[], Iterable[Mark]], forsaken: Callable[[], None]) -> Journal:
        """The journal, to be begun by the caller. `owed`: for its snapshots; `forsaken`: see Journal."""
        try:
            self._journal = Journal(self._directory / "journal", self.instance, outbox.generations, owed, forsaken)
        except OSError as error:
            raise _fault(self._directory, error) from error
        return self._journal

    def reserve(self, epoch: int) -> None:
        """Before `epoch` is sent. EnvironmentFault if the state directory fails."""
        if epoch < self._reserved:
            return
        try:
            self.store.set_meta({"epochs": str(epoch + _EPOCHS)})
        except sqlite3.Error as error:
            raise _fault(self._directory, error) from error
        self._reserved = epoch + _EPOCHS

    def renew(self) -> None:
        """The replica is ahead of the index: this is another instance from here on, which vouches for nothing."""
        try:
            self.instance = secrets.randbits(63)
            self.store.set_meta({"instance": str(self.instance), "durable": "0"})
        except sqlite3.Error as error:
            raise _fault(self._directory, error) from error
        self.durable = 0

    def mistrust(self) -> None:
        """The replica is not what the index says: until `trust`, a successor must compare everything too."""
        try:
            self.store.set_meta({"mistrusted": "1"})
        except sqlite3.Error as error:
            raise _fault(self._directory, error) from error
        self.mistrusted = True

    def trust(self) -> None:
        """Everything was compared, and is durable."""
        self.mistrusted = False

    def mark(self, mark: str) -> None:
        """All changes from before `mark` (see Scan) are durable: the next survey need not look for them."""
        self._mark = mark

    def scanned(self) -> None:
        """The first sync is complete: a successor may rely on the index, once all that is durable by now is in it."""
        self._scanned = True

    def turn(self, outbox: Outbox, now: int) -> None:
        """To be called a few times a second, after it was seen that the kernel has lost nothing."""
        if now >= self._next_write:
            self._write(outbox, now)
        if self._journal is None:
            return
        if now >= self._next_sync and not self._syncing:
            self._next_sync = now + _SYNC
            descriptor = self._journal.to_sync()
            if descriptor is not None:
                self._syncing = True
                self._worker.submit(lambda: sync(descriptor), self._synced)

    def collect(self) -> None:
        """Hear of what was written."""
        self._worker.collect()

    def close(self) -> None:
        """Write what is to be written, and give everything back."""
        self._worker.join()
        self._worker.collect()
        if self._told:
            try:
                self.store.commit(self._told, self._meta())
            except sqlite3.Error as error:
                log.error("cannot write the index: %s; the next start compares more than it need", error)
        self.store.close()
        if self._journal is not None:
            self._journal.close()

    def _write(self, outbox: Outbox, now: int) -> None:
        if self._writing:
            return
        self._told += outbox.news.take(now)
        settled = self._journal.settled() if self._journal is not None else 0
        told, meta = list(self._told), self._meta()
        if not told and self._scanned == self.known and self._mark == self._marked:
            if settled and self._journal is not None:
                self._journal.remove(settled)
            return
        self._writing = True

        def written(result: Committed | Exception) -> None:
            self._writing = False
            if isinstance(result, Exception):
                self._failed(result, now)
                return
            if self.trouble:
                log.warning("the index is written again")
                self.trouble = ""
            del self._told[: len(told)]
            self.known, self._marked = meta["scanned"] == "1", meta["since"]
            if self._index is not None:
                self._index.committed(result, (*self._told, *outbox.news.later()))
            if settled and self._journal is not None:
                self._journal.remove(settled)

        self._worker.submit(lambda: self.store.commit(told, meta), written)

    def _meta(self) -> dict[str, str]:
        return {
            "durable": str(self.durable),
            "since": self._mark,
            "scanned": str(int(self._scanned)),
            "mistrusted": str(int(self.mistrusted)),
        }

    def _failed(self, error: Exception, now: int) -> None:
        self._next_write = now + _AGAIN
        if not isinstance(error, sqlite3.OperationalError):
            raise error
        if not self.trouble:
            log.error("cannot write the index in %s: %s; trying again", self._directory, error)
        self.trouble = str(error)

    def _synced(self, result: Exception | None) -> None:
        self._syncing = False
        if isinstance(result, Exception):
            log.error("cannot sync the journal in %s: %s", self._directory, result)


def _fault(directory: Path, error: Exception) -> EnvironmentFault:
    return EnvironmentFault(
        f"cannot use the index in {directory}: {error}; free space there, or choose another directory with --state"
    )

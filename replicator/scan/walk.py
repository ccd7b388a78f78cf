"""The inodes in the tree of a source, by walking it: for filesystems, or devices, that have no faster way.

Takes a SourceRoot; is a Scan. Mounts inside are not seen, as by everything that goes through a SourceRoot; links are
not followed; nothing but directories is opened. Files with several names come once. A name that was moved during the
walk may be missed or come twice: who watches names has seen that.

What cannot be looked at, or listed, is passed over, and an error at the end tells of it: nothing that is missing is to
be taken for removed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator
from typing import Final

import numpy as np

from replicator import syscalls
from replicator.errors import EnvironmentFault
from replicator.observe.log import printable
from replicator.scan.listing import DIRECTORY, Entries, Listing, row_of
from replicator.scan.parallel import THREADS, side_by_side
from replicator.scan.pending import Pending
from replicator.scan.row import Rows
from replicator.tree.handles import SourceRoot

BATCH: Final = 1 << 14
"""Rows that a thread gathers before it hands them over."""


class WalkScan:
    """See Scan; complete for what is in the tree."""

    complete = True

    def __init__(self, source: SourceRoot) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._seen: set[tuple[int, int, int]] = set()
        """Of files with several names: root, number, generation."""
        self._failures: list[str] = []

    def mark(self) -> str | None:
        """Nothing: a walk looks at everything."""
        return None

    def __iter__(self) -> Iterator[Rows]:
        pending = Pending(self._source, self._refused)
        try:
            yield row_of(self._source.id, os.fstat(self._source.fd))
            yield from side_by_side([self._work(pending) for _ in range(THREADS)])
        finally:
            pending.close()
        if self._failures:
            more = f" (and {len(self._failures) - 1} others)" if len(self._failures) > 1 else ""
            raise EnvironmentFault(
                f"Cannot walk all of {self._source.path}: {self._failures[0]}{more}; check the kernel log and the"
                " filesystem."
            )

    def _work(self, pending: Pending) -> Generator[Rows, None, None]:
        """What one thread does."""
        listing = Listing(self._source, self._refused)
        kept: list[Rows] = []
        count = 0
        while (place := pending.take()) is not None:
            directories: list[bytes] = []
            try:
                for entries in self._entries(listing, place):
                    directories += entries.directories
                    rows = self._once(entries.rows)
                    kept.append(rows)
                    count += len(rows)
                    if count >= BATCH:
                        yield np.concatenate(kept)
                        kept, count = [], 0
            finally:
                pending.done(place, directories)
        if count:
            yield np.concatenate(kept)

    def _once(self, rows: Rows) -> Rows:
        """Without files that have come by another name."""
        several = np.flatnonzero((rows["nlink"] > 1) & (rows["mode"] >> 12 != DIRECTORY))
        if not len(several):
            return rows
        fresh = np.ones(len(rows), np.bool_)
        with self._lock:
            for number, id in zip(several, rows[["root", "ino", "gen"]][several].tolist(), strict=True):
                fresh[number] = id not in self._seen
                self._seen.add(id)
        return rows[fresh]

    def _entries(self, listing: Listing, fd: int) -> Iterator[Entries]:
        """All names in a directory that can be looked at."""
        try:
            yield from listing.read(fd)
        except FileNotFoundError:
            return  # the directory was removed
        except OSError as error:
            self._refused(fd, b".", error)

    def _refused(self, fd: int, name: bytes, error: OSError | ValueError) -> None:
        """A name in the directory `fd` cannot be looked at, or listed; the others are."""
        try:
            where = os.readlink(syscalls.fd_path(fd))
        except OSError:
            where = "?"
        why = error.strerror if isinstance(error, OSError) else error
        self._failures.append(f"{printable(os.path.join(where, os.fsdecode(name)))} below it: {why}")

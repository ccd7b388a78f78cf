"""Reads a small change at once, in the sender's own loop, where nothing makes it wait.

A worker thread costs two hand-overs, which take longer than reading some bytes that are in memory. Takes a flush; gives
its outcome as read.py would, or None: then somebody holds the inode's lock, or a page is not in memory, or the flush is
not a plain one, and a worker is to read it. It never waits for a lock or for the disk.

The lock is tried, not taken: ext4 tries it for a direct read that must not wait, before it looks whether there is
anything to read, so such a read far behind the end of the file answers "held" or nothing; XFS tries it for any read
that must not wait. Who told of a change before it was complete held the lock then: if it is free, the change is
complete (ext4_dio_read_iter, xfs_file_buffered_read). The reads of other filesystems do not ask for the lock.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time

from replicator.dirty.ranges import RangeSet
from replicator.source.flight import Flush
from replicator.source.read import Outcome, part_of
from replicator.tree.handles import SourceRoot, Stale

MOST = 1 << 16
"""Bytes: more than that is not read at once."""
FRESH = 1_000_000_000
"""ns since the newest record: the inode is in memory, so that opening it does not wait for the disk."""
_FAR = 1 << 62
_FLAGS = os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK | os.O_NOCTTY


class Glance:
    """Of one source."""

    def __init__(self, source: SourceRoot) -> None:
        self._source = source
        self._trial = mmap.mmap(-1, mmap.PAGESIZE)  # aligned, as a direct read must be
        self._flags = _FLAGS | (os.O_DIRECT if source.fstype == "ext4" else 0)
        self._able = source.fstype in ("ext4", "xfs")

    def read(self, flush: Flush) -> Outcome | None:
        """What the whole flush reads; None if a worker is to read it."""
        owed = flush.owed
        now = time.monotonic_ns()
        if (
            not self._able
            or flush.left is not None
            or owed.whole
            or owed.check
            or owed.deep
            or owed.mapped
            or owed.holes
            or owed.lowest is not None
            or not owed.ranges  # bytes were written to it: it is a regular file
            or owed.folios
            or now - max(owed.written, owed.begun) > FRESH
        ):
            return None
        try:
            fd = self._source.open_by_id(owed.id, self._flags)
        except (Stale, OSError):
            return None
        try:
            return self._read(fd, flush)
        except OSError:  # BlockingIOError above all
            return None
        finally:
            os.close(fd)

    def _read(self, fd: int, flush: Flush) -> Outcome | None:
        waited = time.monotonic_ns()
        if self._flags & os.O_DIRECT:
            os.preadv(fd, [self._trial], _FAR, os.RWF_NOWAIT)
            fcntl.fcntl(fd, fcntl.F_SETFL, _FLAGS)
        else:
            os.preadv(fd, [memoryview(self._trial)[:1]], 0, os.RWF_NOWAIT)
        read = time.monotonic_ns()
        status = os.fstat(fd)
        size = status.st_size
        owed = flush.owed
        if status.st_nlink == 0 or owed.ranges.end > size:
            return None
        ranges = owed.ranges
        if flush.known_size is not None and flush.known_size < size:
            ranges = owed.ranges.copy()
            ranges.add(flush.known_size, size)
        if ranges.total > MOST:
            return None
        data: list[tuple[int, bytes]] = []
        for start, end in ranges:
            buffer = bytearray(end - start)
            if os.preadv(fd, [buffer], start, os.RWF_NOWAIT) != len(buffer):
                return None
            data.append((start, bytes(buffer)))
        flush.size, flush.left = size, RangeSet()
        outcome = Outcome(flush, sent=list(ranges))
        outcome.part = part_of(flush, fd, status, size, data, [], waited, read)
        return outcome

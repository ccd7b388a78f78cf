"""Reads what one inode owes: the only reader of user data.

Takes a flush (see outbox.py), gives a part: a fact and bytes. Runs in worker threads, for each step may wait: for the
inode's lock, for a mapping's pages to be written out, for the disk. First the lock, then the look: a hook may fire
before its effect is complete, under the inode's lock, so the reader waits for that lock before it looks at the size.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, field

from replicator import syscalls
from replicator.blocks import COMPARED_FROM
from replicator.dirty.ranges import RangeSet
from replicator.model import END_OF_FILE, Attributes, Extent, FileId, InodeFact, Kind, kind_of, replicated_xattr
from replicator.source.flight import SETTLED_AFTER, SLICE, Flush, Part
from replicator.source.pages import PAGE, PageHashes
from replicator.tree.handles import SourceRoot, Stale

HOLES_FROM = 1 << 16
"""A range of at least this many bytes is looked through for holes."""
BEYOND_TRIES = 3
LONG_WAIT = 5_000_000  # ns
_FLUSH = syscalls.SYNC_FILE_RANGE_WAIT_BEFORE | syscalls.SYNC_FILE_RANGE_WRITE | syscalls.SYNC_FILE_RANGE_WAIT_AFTER


@dataclass(slots=True)
class Outcome:
    """What became of reading one flush: a part, or gone, or an error to try again after."""

    flush: Flush
    part: Part | None = None
    gone: bool = False
    error: OSError | None = None
    early: bool = False
    """Somebody was changing the file, for long: what that was about is better known now, so nothing was read."""
    beyond: RangeSet = field(default_factory=RangeSet)
    """Dirty ranges beyond the end of the file: their size is still to come."""
    hashes: dict[int, int] = field(default_factory=dict)
    sent: list[tuple[int, int]] = field(default_factory=list)
    """Ranges whose page hashes are out of date now."""
    seconds: float = 0.0
    """How long it took to write a mapping's pages out."""


class Reader:
    """Reads flushes of one source. `read` may run in several threads, each with another inode."""

    def __init__(self, source: SourceRoot, pages: PageHashes) -> None:
        self._source = source
        self._pages = pages

    def read(self, flush: Flush) -> Outcome:
        """The next slice of a flush. Never raises OSError: that is in the outcome."""
        outcome = Outcome(flush)
        try:
            fd = self._source.open_to_read(flush.owed.id, regular=flush.regular)
        except Stale:
            outcome.gone = True
            return outcome
        except OSError as error:
            outcome.error = error
            return outcome
        try:
            self._read(fd, flush, outcome)
        except OSError as error:
            outcome.error = error
        finally:
            os.close(fd)
        return outcome

    def _read(self, fd: int, flush: Flush, outcome: Outcome) -> None:
        waited = read = 0  # nobody is waited for, so nothing counts as seen
        status = os.fstat(fd)
        kind = kind_of(status.st_mode)
        owed = flush.owed
        if owed.deep and kind is Kind.FILE and status.st_size < COMPARED_FROM:
            owed.check = owed.deep = False  # to send it costs less than to ask
            owed.mark_whole()
        if kind is Kind.FILE and not owed.check:
            asked = time.monotonic_ns()
            wait_for_lock(fd, status.st_size, self._source.fstype)
            # What was told until here was told by one who is done, or holds the lock that is waited for once more.
            waited = time.monotonic_ns()
            wait_for_lock(fd, status.st_size, self._source.fstype)
            if flush.left is None and not owed.waited and time.monotonic_ns() - asked > LONG_WAIT:
                outcome.early = True
                return
            if owed.mapped and flush.left is None:
                self._write_out(fd, flush, outcome)
            read = time.monotonic_ns()
        elif kind is Kind.FILE and owed.mapped:  # whoever asks for all of it next does not know of its pages
            syscalls.membarrier()
            write_out(fd, 0, 0, self._source.fstype)
        status = os.fstat(fd)
        if status.st_nlink == 0:
            outcome.gone = True
            return
        data: list[tuple[int, bytes]] = []
        holes: list[Extent] = []
        size = status.st_size if kind is Kind.FILE else 0
        first = flush.left is None
        if kind is Kind.FILE and not owed.check:
            size = self._slice(fd, flush, size, outcome, data, holes)
        outcome.part = part_of(flush, fd, status, size, data, holes, waited, read, first=first)

    def _write_out(self, fd: int, flush: Flush, outcome: Outcome) -> None:
        """Make the pages of mappings clean, so that what is stored from here on faults and is seen."""
        syscalls.membarrier()  # some milliseconds of waiting that cost nobody anything
        started = time.monotonic()
        ranges = flush.owed.ranges.copy()
        ranges.update(flush.owed.folios)
        for start, end in ranges:
            write_out(fd, start, end, self._source.fstype)
        outcome.seconds = time.monotonic() - started

    def _slice(
        self, fd: int, flush: Flush, size: int, outcome: Outcome, data: list[tuple[int, bytes]], holes: list[Extent]
    ) -> int:
        """Read the next slice into `data` and `holes`; returns the size to announce."""
        owed = flush.owed
        folios = RangeSet()
        if flush.left is None:
            ranges = self._due(flush, size, outcome)
            folios = owed.folios.within(size)
            shared = RangeSet()
            for start, end in ranges:  # a page that is in both is read once
                for piece in folios.remove(start - start % PAGE, -(-end // PAGE) * PAGE):
                    shared.add(*piece)
            ranges.update(shared)
            flush.size = size
        else:
            ranges = flush.left.within(size)
            size = min(size, flush.size)
        if owed.whole or owed.lowest is not None:
            outcome.sent.append((0 if owed.whole else owed.lowest or 0, END_OF_FILE))
        budget = SLICE  # however few bytes are wanted: of what is sent as it is, nothing is remembered
        changed = RangeSet()
        for start, end in folios:
            if budget > 0:
                budget -= self._read_folio(fd, owed.id, start, end, outcome, data)
            else:
                changed.add(start, end)  # too much at once: sent as it is
        ranges.update(changed)
        budget = min(budget, flush.most)
        left = RangeSet()
        for start, end in ranges:
            at = start
            if end - start < HOLES_FROM and not owed.holes and budget > 0:  # by far the commonest
                chunk = os.pread(fd, end - start, start)
                if len(chunk) == end - start:
                    data.append((start, chunk))
                    outcome.sent.append((start, end))
                    budget -= len(chunk)
                    continue
            while at < end and budget > 0:
                at, cost = self._read_some(fd, at, end, owed.holes, budget, data, holes)
                budget -= cost
            outcome.sent.append((start, at))
            left.add(at, end)
        flush.left = left
        data.sort()
        return size

    def _due(self, flush: Flush, size: int, outcome: Outcome) -> RangeSet:
        """What the first slice must begin with: dirty ranges, and every tail that the new size uncovers."""
        owed = flush.owed
        ranges = owed.ranges.within(size)
        for known in (owed.lowest, flush.known_size):
            if known is not None and not owed.whole:
                ranges.add(known, size)
        edge = -(-size // PAGE) * PAGE
        if owed.lowest is None and owed.beyond < BEYOND_TRIES and edge < owed.ranges.end < END_OF_FILE:
            outcome.beyond.update(owed.ranges)
            outcome.beyond.remove(0, edge)
        return ranges

    def _read_folio(
        self, fd: int, id: FileId, start: int, end: int, outcome: Outcome, data: list[tuple[int, bytes]]
    ) -> int:
        start -= start % PAGE
        chunk = os.pread(fd, end - start, start)
        changed, hashes = self._pages.compare(id, start, chunk)
        outcome.hashes.update(hashes)
        for first, last in changed:
            data.append((start + first, chunk[first:last]))
        return sum(last - first for first, last in changed)

    @staticmethod
    def _read_some(
        fd: int,
        at: int,
        end: int,
        look_for_holes: bool,
        budget: int,
        data: list[tuple[int, bytes]],
        holes: list[Extent],
    ) -> tuple[int, int]:
        """Read, or skip as a hole, from `at` on; returns where it ended and how many bytes it took."""
        stop = end
        if look_for_holes or end - at >= HOLES_FROM:
            try:
                first = min(end, os.lseek(fd, at, os.SEEK_DATA))
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                first = end
            if first > at:
                holes.append(Extent(at, first - at))
                return first, 0
            stop = min(end, os.lseek(fd, at, os.SEEK_HOLE))
        stop = min(stop, at + budget)
        chunk = os.pread(fd, stop - at, at)
        if chunk:
            data.append((at, chunk))
            return at + len(chunk), len(chunk)
        return end, 0  # cut off meanwhile: a new size is on its way


def part_of(
    flush: Flush,
    fd: int,
    status: os.stat_result,
    size: int,
    data: list[tuple[int, bytes]],
    holes: list[Extent],
    waited: int,
    read: int,
    *,
    first: bool = True,
) -> Part:
    """What was read of an inode, as a part to be sent; `first`: of the flush. OSError as its attributes can be read."""
    owed = flush.owed
    kind = kind_of(status.st_mode)
    file = kind is Kind.FILE
    fact = InodeFact(
        id=owed.id,
        kind=kind,
        attributes=_attributes(fd, kind, status),
        size=size,
        whole=not file or (owed.whole and first),
        partial=file and not owed.check and bool(flush.left),
        check=owed.check,
        deep=owed.deep and file,
        settled=not owed.mapped and flush.even and abs(flush.taken - status.st_ctime_ns) > SETTLED_AFTER,
        lowest=owed.lowest if file and first else None,
        data=tuple(Extent(offset, len(chunk)) for offset, chunk in data),
        holes=tuple(holes),
    )
    covered = [(extent.offset, extent.end) for extent in (*fact.data, *fact.holes)]
    return Part(flush, fact, data, waited, read, covered)


def wait_for_lock(fd: int, size: int, fstype: str) -> None:
    """Wait until whoever changes the file has let go of the inode's lock. OSError."""
    if fstype == "xfs":
        os.pread(fd, 1, 0)  # a buffered read takes it there, seeking does not
        return
    try:
        os.lseek(fd, max(0, size - 1), os.SEEK_HOLE)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise


def write_out(fd: int, start: int, end: int, fstype: str) -> None:
    """Make the pages of mappings in [start, end) clean; all of the file if that is empty. OSError."""
    for _ in range(2 if fstype == "btrfs" else 1):
        syscalls.sync_file_range(fd, start, end - start, _FLUSH)


def _attributes(fd: int, kind: Kind, status: os.stat_result) -> Attributes:
    return Attributes(
        mode=status.st_mode & 0o7777,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        rdev=status.st_rdev if kind in (Kind.CHARACTER, Kind.BLOCK) else 0,
        target=os.readlink(b"", dir_fd=fd) if kind is Kind.SYMLINK else b"",
        xattrs={name: value for name, value in syscalls.get_xattrs(fd).items() if replicated_xattr(name)},
    )

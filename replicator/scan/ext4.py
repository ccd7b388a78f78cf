"""All inodes of an ext4, read from its inode tables on the device.

Takes a SourceRoot on ext4; is a Scan. Groups that were never used are not read. Needs the device to be readable.

What the tables say is what the kernel knows: it puts every change of an inode into their buffers at once, before that
is journalled or written. Two things come later, and syncfs(2) before the scan brings them: times with lazytime, and
the size of a file whose new bytes have no place on disk yet. A file that is being shortened keeps its row (it is on
the list of orphans, and its deletion time holds the next on it); one without names has none. The size of an encrypted
symbolic link is that of the stored target, which is longer than what statx(2) says.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Final

import numpy as np

from replicator.errors import EnvironmentFault
from replicator.scan.device import open_device
from replicator.scan.ext2fs import Run, read_layout
from replicator.scan.ext4_table import Decoded, decode
from replicator.scan.parallel import side_by_side
from replicator.scan.row import Numbers, Rows
from replicator.tree.handles import SourceRoot

PIECE: Final = 2 << 20
"""Bytes that are read and decoded at a time: what is done to them takes long beside waking the other thread."""

PARTS: Final = 2
"""Threads that read and decode, while a third compares: more only wait for one another."""

AHEAD: Final = 8
"""Pieces of each part that the kernel is asked to fetch from disk ahead."""

AT_START: Final = 256 << 20
"""Bytes that are fetched ahead of the whole scan, at most."""

log = logging.getLogger(__name__)


class Ext4Scan:
    """See Scan. EnvironmentFault at construction if the tables cannot be read, or are not those of the source."""

    complete = True

    def __init__(self, source: SourceRoot) -> None:
        self._source = source
        device = open_device(source)
        try:
            self._layout = read_layout(device, source.path)
            self._prove(device)
        finally:
            os.close(device)

    def mark(self) -> str | None:
        """Nothing: the tables do not say since when."""
        return None

    def fetch_ahead(self) -> None:
        """Have the disk begin with what is read first; what is changed until then is changed in what it fetched."""
        device = open_device(self._source)
        try:
            left = AT_START
            for run in self._layout.runs:
                length = min(left, run.inodes * self._layout.inode_size)
                os.posix_fadvise(device, run.offset, length, os.POSIX_FADV_WILLNEED)
                left -= length
                if not left:
                    break
        finally:
            os.close(device)

    def __iter__(self) -> Iterator[Rows]:
        device = open_device(self._source)
        odd = 0
        try:
            with closing(side_by_side([self._part(device, number) for number in range(PARTS)])) as parts:
                for decoded in parts:
                    odd += decoded.odd
                    if len(decoded.rows):
                        yield decoded.rows
        finally:
            os.close(device)
        if odd:
            log.warning("%d inodes on the device of %s are damaged: check it (e2fsck)", odd, self._source.path)

    def _part(self, device: int, number: int) -> Generator[Decoded, None, None]:
        """Every PARTS-th piece."""
        size = self._layout.inode_size
        buffer = np.empty(PIECE, np.uint8)
        pieces = islice(pieces_of(self._layout.runs, PIECE // size, size), number, None, PARTS)
        for piece in self._fetched(device, pieces):
            yield self._read(device, piece, buffer)

    def _fetched(self, device: int, pieces: Iterator[list[Run]]) -> Iterator[list[Run]]:
        """The pieces, the kernel being asked for what comes after each of them."""
        coming: deque[list[Run]] = deque()
        for piece in pieces:
            for run in piece:
                os.posix_fadvise(device, run.offset, run.inodes * self._layout.inode_size, os.POSIX_FADV_WILLNEED)
            coming.append(piece)
            if len(coming) > AHEAD:
                yield coming.popleft()
        yield from coming

    def _read(self, device: int, piece: list[Run], buffer: Numbers) -> Decoded:
        layout = self._layout
        filled = 0
        for run in piece:
            end = filled + run.inodes * layout.inode_size
            self._fill(device, buffer[filled:end], run.offset)
            filled = end
        inos = np.concatenate([np.arange(run.first, run.first + run.inodes, dtype="<u8") for run in piece])
        decoded = decode(buffer[:filled], inos, layout.inode_size, layout.large_directories)
        return decoded._replace(rows=self._ordinary(decoded.rows))

    def _fill(self, device: int, into: Numbers, offset: int) -> None:
        view = into.data
        while view:
            try:
                got = os.preadv(device, [view], offset)
            except OSError as error:
                raise self._unreadable(offset, str(error.strerror)) from error
            if got == 0:
                raise self._unreadable(offset, "it ends there")
            view, offset = view[got:], offset + got

    def _unreadable(self, offset: int, why: str) -> EnvironmentFault:
        return EnvironmentFault(
            f"Cannot read the inodes of {self._source.path} at byte {offset} of its device: {why}; check the kernel log"
            " and the disk, or use --scan walk."
        )

    def _ordinary(self, rows: Rows) -> Rows:
        """Without those that the kernel keeps for itself."""
        layout = self._layout
        if not len(rows):
            return rows
        if rows["ino"][0] < layout.first_ordinary:
            rows = rows[(rows["ino"] >= layout.first_ordinary) | (rows["ino"] == layout.root)]
        for special in layout.special:
            if len(rows) and rows["ino"][0] <= special <= rows["ino"][-1]:
                rows = rows[rows["ino"] != special]
        return rows

    def _prove(self, device: int) -> None:
        """The tables are of the filesystem that the source is on: its own inode is where it should be."""
        source, size = self._source, self._layout.inode_size
        for run in self._layout.runs:
            if run.first <= source.id.ino < run.first + run.inodes:
                place = Run(source.id.ino, 1, run.offset + (source.id.ino - run.first) * size)
                rows = self._read(device, [place], np.empty(size, np.uint8)).rows
                found = [(int(row["ino"]), int(row["gen"]), stat.S_IFMT(int(row["mode"]))) for row in rows]
                if found == [(source.id.ino, source.id.gen, stat.S_IFDIR)]:
                    return
        raise EnvironmentFault(
            f"Cannot use the inode tables on the device of {source.path}: its own inode is not in them; check the"
            " filesystem (e2fsck), or use --scan walk."
        )


def pieces_of(runs: Iterable[Run], room: int, inode_size: int) -> Iterator[list[Run]]:
    """Runs cut and gathered, in order, so that each piece has `room` inodes (the last: at most)."""
    piece: list[Run] = []
    free = room
    for run in runs:
        left = run
        while left.inodes:
            part = left._replace(inodes=min(left.inodes, free))
            piece.append(part)
            left = Run(left.first + part.inodes, left.inodes - part.inodes, left.offset + part.inodes * inode_size)
            free -= part.inodes
            if not free:
                yield piece
                piece, free = [], room
    if piece:
        yield piece

"""Stamps: what stat said of an inode when the replica got it, to recognise later that it has changed since.

Takes ids and stamps; keeps them in pages of 128 by inode number, so that those of a million files are a few thousand
blobs, compared by numpy. Compares by inequality: a time that went back is a change too. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from stat import S_IFREG
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from replicator.model import FileId

PAGE: Final = 128
"""Stamps in a page."""

STAMP: Final = np.dtype([("gen", "<u4"), ("state", "<u4"), ("size", "<u8"), ("mtime", "<i8"), ("ctime", "<i8")])
"""One place in a page; times in ns since the epoch. An inode's place is its number modulo PAGE."""

_TYPE: Final = 0o170000
NOTHING, SURE, UNSURE = 0, 1, 2
"""States: no inode; as the stamp says; known to the replica in a state that no stamp can vouch for."""


_ROW: Final = struct.Struct("<IIQqq")
_WRAP: Final = 1 << 63


class Stamp(NamedTuple):
    """Size in bytes (of a regular file, else 0), times in ns since the epoch; `sure`: it can vouch for the state."""

    size: int
    mtime: int
    ctime: int
    sure: bool = True


def place_of(id: FileId) -> tuple[int, int, int]:
    """(root, page, place in the page)."""
    return id.root, id.ino // PAGE, id.ino % PAGE


def stamped(rows: npt.NDArray[np.void], id: FileId, stamp: Stamp | None) -> None:
    """Set an inode's place in its page. None: unsure, and of the size that was known."""
    at = id.ino % PAGE
    if stamp is not None:
        state = SURE if stamp.sure else UNSURE
        rows[at] = (id.gen, state, stamp.size, _wrapped(stamp.mtime), _wrapped(stamp.ctime))
    elif rows["state"][at] != NOTHING and rows["gen"][at] == id.gen:
        rows["state"][at] = UNSURE
    else:
        rows[at] = (id.gen, UNSURE, 0, 0, 0)


def is_there(rows: npt.NDArray[np.void], id: FileId) -> bool:
    """Whether its page has a stamp of the inode."""
    at = id.ino % PAGE
    return bool(rows["state"][at] != NOTHING and rows["gen"][at] == id.gen)


def size_in(rows: bytes, id: FileId) -> int | None:
    """The size in the inode's stamp, of a page as it is stored; None if it has no stamp there."""
    gen, state, size, _, _ = _ROW.unpack_from(rows, id.ino % PAGE * STAMP.itemsize)
    return int(size) if state != NOTHING and gen == id.gen else None


def _wrapped(time: int) -> int:
    """As 64 bits hold it; a scan's rows wrap in the same way."""
    return (time + _WRAP) % (2 * _WRAP) - _WRAP


def cleared(rows: npt.NDArray[np.void], id: FileId) -> None:
    """The inode is dead: its place is free, unless it is another's already."""
    at = id.ino % PAGE
    if rows["gen"][at] == id.gen:
        rows[at] = (0, NOTHING, 0, 0, 0)


class Stamps:
    """Many stamps, by column: of whole pages, in ascending order, each added once."""

    def __init__(self, root: int, room: int) -> None:
        """For up to `room` pages (room that is not used is not taken); all inodes lie in `root`."""
        self.root = root
        self._pages = np.empty(room, np.uint64)
        self._columns = {name: np.empty(room * PAGE, STAMP[name]) for name in STAMP.names or ()}
        self._filled = 0

    @property
    def pages(self) -> npt.NDArray[np.uint64]:
        """Their numbers."""
        return self._pages[: self._filled]

    @property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Of all places of all pages."""
        return {name: column[: self._filled * PAGE] for name, column in self._columns.items()}

    def add(self, pages: Sequence[int], blobs: Iterable[bytes]) -> None:
        """The next pages, as they are stored."""
        rows = np.frombuffer(b"".join(blobs), STAMP)
        to = self._filled + len(pages)
        self._pages[self._filled : to] = pages
        for name, column in self._columns.items():
            column[self._filled * PAGE : to * PAGE] = rows[name]
        self._filled = to


class Differences:
    """What a scan of all inodes finds changed since the replica got them."""

    def __init__(self, stamps: Stamps) -> None:
        self._root = stamps.root
        self._pages = stamps.pages
        columns = stamps.columns
        self._gen, self._state, self._size = columns["gen"], columns["state"], columns["size"]
        self._mtime, self._ctime = columns["mtime"], columns["ctime"]
        self._met = np.zeros(len(self._gen), np.bool_)

    def changed(self, inodes: npt.NDArray[np.void]) -> list[FileId]:
        """Those of a scan's rows (scan.INODE) whose stamp is not theirs. Who has no stamp is passed over."""
        if not len(self._pages) or not len(inodes):
            return []
        numbers = inodes["ino"] // PAGE
        # Runs of inodes in one page: only their first is searched for.
        starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1])))
        lengths = np.diff(starts, append=len(numbers))
        found = np.minimum(np.searchsorted(self._pages, numbers[starts]), len(self._pages) - 1)
        known = self._pages[found] == numbers[starts]
        if not known.all():
            inodes = inodes[np.repeat(known, lengths)]
            found, lengths = found[known], lengths[known]
        at = np.repeat(found * PAGE, lengths) + (inodes["ino"] % PAGE).astype(np.intp)
        state = self._state[at]
        same = (state != NOTHING) & (self._gen[at] == inodes["gen"])
        self._met[at[same]] = True
        regular = inodes["mode"] & _TYPE == S_IFREG
        differ = (
            (state == UNSURE)
            | (self._ctime[at] != inodes["ctime"])
            | (self._mtime[at] != inodes["mtime"])
            | (regular & (self._size[at] != inodes["size"]))
        )
        hits = inodes[same & differ]
        return [
            FileId(0, self._root, ino, gen) for ino, gen in zip(hits["ino"].tolist(), hits["gen"].tolist(), strict=True)
        ]

    def missing(self) -> list[FileId]:
        """Those with a stamp that no row was about."""
        return self._ids((self._state != NOTHING) & ~self._met)

    def unsure(self) -> list[FileId]:
        """Those that no stamp can vouch for."""
        return self._ids(self._state == UNSURE)

    def _ids(self, which: npt.NDArray[np.bool_]) -> list[FileId]:
        (at,) = np.nonzero(which)
        numbers = (self._pages[at // PAGE] * PAGE + (at % PAGE).astype(np.uint64)).tolist()
        gens = self._gen[at].tolist()
        return [FileId(0, self._root, ino, gen) for ino, gen in zip(numbers, gens, strict=True)]

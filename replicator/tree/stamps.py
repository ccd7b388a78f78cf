"""Stamps: what stat said of an inode when the replica got it, to recognise later that it has changed since.

Takes ids and stamps; keeps them in pages of 128 by inode number, so that those of a million files are a few thousand
blobs, compared by numpy. Compares by inequality: a time that went back is a change too. Pure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from replicator.model import FileId

PAGE: Final = 128
"""Stamps in a page."""

STAMP: Final = np.dtype([("gen", "<u4"), ("state", "<u4"), ("size", "<u8"), ("mtime", "<i8"), ("ctime", "<i8")])
"""One place in a page; times in ns since the epoch. An inode's place is its number modulo PAGE."""

NOTHING, SURE, UNSURE = 0, 1, 2
"""States: no inode; as the stamp says; known to the replica in a state that no stamp can vouch for."""


class Stamp(NamedTuple):
    """Size in bytes (of a regular file, else 0), times in ns since the epoch."""

    size: int
    mtime: int
    ctime: int


def place_of(id: FileId) -> tuple[int, int, int]:
    """(root, page, place in the page)."""
    return id.root, id.ino // PAGE, id.ino % PAGE


def stamped(rows: npt.NDArray[np.void], id: FileId, stamp: Stamp | None, *, anew: bool = True) -> None:
    """Set an inode's place in its page; without `anew` only if it is not there yet. None: unsure."""
    at = id.ino % PAGE
    if not anew and rows["state"][at] != NOTHING and rows["gen"][at] == id.gen:
        return
    rows[at] = (id.gen, UNSURE, 0, 0, 0) if stamp is None else (id.gen, SURE, *stamp)


def cleared(rows: npt.NDArray[np.void], id: FileId) -> None:
    """The inode is dead: its place is free, unless it is another's already."""
    at = id.ino % PAGE
    if rows["gen"][at] == id.gen:
        rows[at] = (0, NOTHING, 0, 0, 0)

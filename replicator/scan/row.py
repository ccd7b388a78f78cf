"""What a scan says of an inode, and what a scan is.

`INODE` is a numpy dtype: identity, kind, number of links, size in bytes, times in nanoseconds since the epoch, exactly
what statx(2) says. Times that 64 bits cannot hold (after the year 2262) wrap around: rows that differ still differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

INODE: Final = np.dtype(
    [
        ("ino", "<u8"),
        ("root", "<u8"),
        ("gen", "<u4"),
        ("mode", "<u4"),
        ("nlink", "<u4"),
        ("pad", "<u4"),
        ("size", "<u8"),
        ("ctime", "<i8"),
        ("mtime", "<i8"),
    ]
)
"""One inode; (root, ino, gen) are those of its FileId."""

Rows = NDArray[Any]
"""An array of INODE."""

Numbers = NDArray[Any]
"""An array of integers, one for each inode."""

BATCH: Final = 1 << 16
"""Rows that a batch aims at."""

NANOSECONDS: Final = 1_000_000_000

_KINDS: Final = 0x1556
"""A bit for each value that S_IFMT(mode) >> 12 can have."""


class Scan(Protocol):
    """The inodes that there are, each once, from one pass over the filesystem. It is iterated once, and soon.

    A row is what the inode was at some moment after the scan had begun, or, when it was being changed meanwhile, a
    mixture of before and after: what was attached before the scan has seen that change. In the same way a size is the
    one that the filesystem has written down, so syncfs(2) comes first.

    Times are those of the kernel's clock ticks: a change within the same tick (up to 10 ms) as an earlier one can leave
    them as they are. Who compares rows with those of another time must not trust a ctime that was this young when its
    row was read.
    """

    complete: bool
    """All live inodes of the filesystem (a walk: of the tree) are in the batches; if not, only those changed lately."""

    def __iter__(self) -> Iterator[Rows]:
        """Batches, some 100,000 rows at most. Raises EnvironmentFault when the filesystem cannot be read to its end.

        A batch belongs to the caller.
        """

    def mark(self) -> str | None:
        """What to pass as `since` another time to get only what has changed since this scan began; None if no way."""


def known_kind(mode: Numbers) -> NDArray[np.bool_]:
    """Which of these modes are those of inodes that can be opened."""
    return (np.uint32(_KINDS) >> (mode >> 12) & 1).astype(bool)

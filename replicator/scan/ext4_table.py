"""Inodes of ext4 as they lie in its tables on disk, decoded in bulk. No I/O.

Takes raw bytes of whole inodes; gives rows. It decides as the kernel does (ext4_iget): which inodes are live, which
have extra bits of times and where a size has upper bits. Any bytes decode to something; nothing is raised.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from replicator.scan.row import INODE, NANOSECONDS, Numbers, Rows, known_kind

SMALLEST: Final = 128
"""Bytes of an inode without extra fields."""

_EA_INODE: Final = 0x200000  # holds an extended attribute of another inode; cannot be opened
_REGULAR: Final = 0x8
_WHOLE_EXTRA: Final = 32  # what a kernel makes of an i_extra_isize of 0

# Where a field lies, in words of 4 bytes.
_MODE, _SIZE, _CTIME, _MTIME, _LINKS, _FLAGS, _GENERATION, _SIZE_HIGH = 0, 1, 3, 4, 6, 8, 25, 27
_EXTRA, _CTIME_EXTRA, _MTIME_EXTRA = 32, 33, 34


class Decoded(NamedTuple):
    """What some inodes are."""

    rows: Rows
    odd: int
    """How many looked live, but are of no kind that there is."""


def decode(raw: Numbers, inos: Numbers, inode_size: int, large_directories: bool) -> Decoded:
    """Decode bytes (uint8, `inode_size` for each of `inos`; the buffer aligned to 4) of neighbouring inodes.

    Only live ones come back: named at least once, that is, of a known kind, and not part of another inode. Whether a
    number is reserved, the caller knows.
    """
    words = raw.view("<u4").reshape(len(inos), inode_size // 4)
    mode = words[:, _MODE] & 0xFFFF
    links = words[:, _LINKS] >> 16
    named = (links != 0) & (words[:, _FLAGS] & _EA_INODE == 0)
    live = named & known_kind(mode)
    count = int(np.count_nonzero(live))
    odd = int(np.count_nonzero(named & (mode != 0))) - count
    if count != len(inos):
        at = np.flatnonzero(live)
        words, mode, links, inos = words[at], mode[at], links[at], inos[at]
    rows = np.zeros(count, INODE)
    rows["ino"] = inos
    rows["gen"] = words[:, _GENERATION]
    rows["mode"] = mode
    rows["nlink"] = links
    size = words[:, _SIZE].astype("<u8")
    high = words[:, _SIZE_HIGH].astype("<u8") << np.uint64(32)
    if not large_directories:
        high *= mode >> 12 == _REGULAR  # anything else has other things there
    rows["size"] = size | high
    if inode_size == SMALLEST:
        for field, base in (("ctime", _CTIME), ("mtime", _MTIME)):
            rows[field] = words[:, base].view("<i4") * np.int64(NANOSECONDS)
        return Decoded(rows, odd)
    extra = words[:, _EXTRA] & 0xFFFF
    extra[extra == 0] = _WHOLE_EXTRA
    for field, base, more in (("ctime", _CTIME, _CTIME_EXTRA), ("mtime", _MTIME, _MTIME_EXTRA)):
        bits = words[:, more] * (extra >= (more + 1) * 4 - SMALLEST)
        seconds = words[:, base].view("<i4") + ((bits & 3).astype("<i8") << 32)
        rows[field] = seconds * NANOSECONDS + (bits >> 2)
    return Decoded(rows, odd)

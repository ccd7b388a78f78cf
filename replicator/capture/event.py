"""The record of the ring, as a numpy dtype: what ebpf/event.h lays out in C.

Takes nothing. A test compiles event.h and compares every offset and every number with these.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

import numpy as np
import numpy.typing as npt

EVENT = np.dtype(
    [
        ("ts", "<u8"),  # CLOCK_MONOTONIC, ns
        ("ino", "<u8"),
        ("off", "<u8"),  # bytes
        ("len", "<u8"),  # bytes; TO_THE_END is "to the end"
        ("root", "<u8"),  # btrfs: objectid of the subvolume's root; elsewhere 0
        ("cgroup", "<u8"),
        ("gen", "<u4"),
        ("pid", "<u4"),  # tgid
        ("kind", "u1"),  # EventKind
        ("fs", "u1"),
        ("flags", "<u2"),  # EventFlag
        ("epoch", "<u4"),  # of the reader (fence.py), if repeats of this write are not told; else 0
    ]
)
"""One record, 64 bytes."""

_CODES = {"<u8": "Q", "<u4": "I", "<u2": "H", "|u1": "B"}
FIELDS = struct.Struct("<" + "".join(_CODES[EVENT[name].str] for name in EVENT.names or ()))
"""The same, for one record at a time: its fields in their order."""

Events = npt.NDArray[np.void]
"""A one-dimensional array of `EVENT`, in ring order."""

LUMP = np.dtype(("V", EVENT.itemsize))
"""A record without fields: numpy copies those with fields field by field, and these in one piece, ten times as fast."""

TO_THE_END = 2**64 - 1
"""`len` of a record that reaches to the end of the file, wherever that is."""


SHORT_NAME, LONG_NAME = 72, 288
"""Room (bytes) behind a NAME record, for names shorter than the first and for all others."""


class EventKind(IntEnum):
    """What a record says: where to look, never what is there now."""

    WRITE = 1
    """Bytes [off, off + len) were written."""
    FOLIO = 2
    """Some bytes of the folio [off, off + len) of a mapping, perhaps one."""
    SIZE = 3
    """The size was set, and is or becomes `off`."""
    TAIL = 4
    """Everything from `off` on moved."""
    ATTR = 5
    """Attributes changed; bytes did not."""
    WHOLE = 6
    """Bytes changed, it is not known which."""
    NAME = 7
    """A name in this directory means something else. The upper half of `len` is its length; 0 says that any of
    them may."""


class EventFlag(IntFlag):
    """What else a record says."""

    MAPPED = 1 << 0
    """The file has writable shared mappings: flush them before any read."""
    HOLES = 1 << 1
    """The range may have become a hole, or stopped being one."""
    BEFORE = 1 << 2
    """Submitted before the effect was complete, under the inode's lock."""
    MOVED = 1 << 3
    """Of a NAME: the inode that has it now (number `off`, generation the low half of `len`) had another before."""

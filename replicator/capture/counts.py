"""What the programs count, in memory that they share with this process.

Takes the map `counts` of ebpf/maps.h, or `spared` of ebpf/notes.h; gives totals over all processors. No system call:
bpf(2) would keep the kernel from running programs at probes on this processor, and a write in that moment from being
seen (decision 0018).
"""

from __future__ import annotations

import mmap
from typing import Final

import numpy as np

# enum rsyncfs_count
RING_FULL, LOST_MAP_FULL, RETURN_MISSED, UNTOLD = range(4)
_COLUMNS: Final = 8


class Counts:
    """The counters of one sensor; `close` gives the memory back."""

    def __init__(self, descriptor: int, rows: int, columns: int = _COLUMNS) -> None:
        """`descriptor`: the map's, which stays the caller's; `rows`: its size, one for each possible processor.

        `columns`: the counters in a row.
        """
        size = rows * columns * 8
        self._memory = mmap.mmap(descriptor, size + -size % mmap.PAGESIZE, prot=mmap.PROT_READ)
        self._rows = np.frombuffer(self._memory, np.uint64, rows * columns).reshape(rows, columns)

    def total(self, what: int) -> int:
        """Since the programs were loaded."""
        return int(self._rows[:, what].sum())

    def close(self) -> None:
        """May be called twice; nothing else may be called afterwards."""
        self._rows = np.zeros((1, 1), np.uint64)
        self._memory.close()

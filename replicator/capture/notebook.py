"""Numbers of the reader's own that outlive it: what it has found of its hooks so far, and what it has acted on.

A map that no program uses, in memory that is shared with it: a number that was stored is there for the next process
that takes the hooks over, whatever ends this one. Each is stored in one piece; in which order several are is the
caller's care.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from replicator.capture import bpf
from replicator.capture.object import MapSpec
from replicator.capture.source import MOST_HOOKS

CALLS: Final = np.dtype([("overdue", "<u8"), ("looked", "<i8")])
SKIPS: Final = np.dtype(
    [("lost", "<u8"), ("missed", "<i8"), ("by_spares", "<i8"), ("looked", "<f8"), ("doubtful", "<f8")]
)
MOST_MECHANISMS: Final = 5
SKIPS_NOTES: Final = MOST_MECHANISMS * MOST_HOOKS

CAUSES: Final = ("ring_full", "lost_map_full", "recursion", "probe_missed")
_ALL: Final = np.dtype([("acknowledged", "<u8", (8,)), ("calls", CALLS), ("skips", SKIPS, (SKIPS_NOTES,))])
SPEC: Final = MapSpec("notebook", bpf.MAP_ARRAY, 4, _ALL.itemsize, 1, bpf.MMAPABLE)

CallsNote = Any  # one element of CALLS: numpy has no type for it
SkipsNote = Any  # of SKIPS
SkipsNotes = npt.NDArray[Any]


class Notebook:
    """The numbers of one sensor; `close` gives the memory back."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor`: the map's, which stays the caller's."""
        size = _ALL.itemsize
        self._memory = mmap.mmap(descriptor, size + -size % mmap.PAGESIZE)
        self._all = np.frombuffer(self._memory, _ALL, 1)

    @property
    def calls(self) -> CallsNote:
        """For capture/calls.py."""
        return self._all["calls"][0]

    @property
    def skips(self) -> SkipsNotes:
        """For capture/skips.py."""
        return self._all["skips"][0]

    def acknowledge(self, losses: Mapping[str, int]) -> None:
        """Note totals by cause; those of other causes stay."""
        for cause, total in losses.items():
            self._all["acknowledged"][0][CAUSES.index(cause)] = total

    def acknowledged(self) -> dict[str, int]:
        """The totals that were noted last."""
        return {cause: int(self._all["acknowledged"][0][at]) for at, cause in enumerate(CAUSES)}

    def close(self) -> None:
        """May be called twice. Whoever has a part of it must have let it go."""
        self._all = np.zeros(1, _ALL)
        self._memory.close()

"""Calls of functions whose entry was probed and whose return was not seen yet.

Takes the map `calls` of ebpf/vfs.h and two numbers that may be older than this process (notebook.py); gives how many
returns must be taken for missed: those of calls that are very old. Such a call may still be under way (on a disk that
hangs): it is counted once, by the first look after it became overdue, and its return is told when it comes.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Final

import numpy as np

from replicator.capture.maps import Map
from replicator.capture.notebook import CALLS, CallsNote

OVERDUE: Final = 10_000_000_000
"""Nanoseconds after which a call is counted."""
_INTERVAL: Final = 1_000_000_000
"""Nanoseconds between two looks: while a value is read, the kernel runs no programs at probes on this processor."""
_KEY: Final = struct.Struct("=QQ")  # thread, function
_VALUE: Final = struct.Struct("=6QQ")  # arguments, time


class Calls:
    """Counts what is overdue."""

    def __init__(self, calls: Map, note: CallsNote | None = None) -> None:
        self._calls = calls
        self._note = np.zeros(1, CALLS)[0] if note is None else note
        self._asked = 0

    def overdue(self) -> int:
        """How many calls were found overdue so far."""
        note, now = self._note, time.monotonic_ns()
        if now - self._asked >= _INTERVAL:
            self._asked = now
            # If the process dies in between, the next one counts these once more.
            note["overdue"] += self._count(int(note["looked"]) - OVERDUE, now - OVERDUE)
            note["looked"] = now
        return int(note["overdue"])

    def _count(self, after: int, until: int) -> int:
        """Calls that began then (CLOCK_MONOTONIC, ns); those of threads that are no more are forgotten."""
        found: set[bytes] = set()
        for key in list(self._calls.keys()):
            value = self._calls.get(key)
            if value is None:
                continue
            since = _VALUE.unpack(value)[6]
            if since > until:
                continue
            if since > after:
                found.add(key)
            if not _thread_lives(key):
                self._calls.remove(key)
        return len(found)


def _thread_lives(key: bytes) -> bool:
    thread = _KEY.unpack(key)[0] & 0xFFFFFFFF
    return Path(f"/proc/{thread}").exists()

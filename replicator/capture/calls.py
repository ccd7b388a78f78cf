"""Calls of functions whose entry was probed and whose return was not seen yet.

Takes the map `calls` of ebpf/vfs.h; gives how many returns must be taken for missed: those of calls that are very old.
Such a call may still be under way (on a disk that hangs): it is counted once, and its return is told when it comes.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Final

from replicator.capture.maps import Map

OVERDUE: Final = 10_000_000_000
"""Nanoseconds after which a call is counted."""
_INTERVAL: Final = 1_000_000_000
"""Nanoseconds between two looks: while a value is read, the kernel runs no programs at probes on this processor."""
_KEY: Final = struct.Struct("=QQ")  # thread, function
_VALUE: Final = struct.Struct("=6QQ")  # arguments, time


class Calls:
    """Counts what is overdue."""

    def __init__(self, calls: Map) -> None:
        self._calls = calls
        self._told: dict[bytes, int] = {}
        self._overdue = 0
        self._looked = 0

    def overdue(self) -> int:
        """How many calls were found overdue so far."""
        now = time.monotonic_ns()
        if now - self._looked < _INTERVAL:
            return self._overdue
        self._looked = now
        told: dict[bytes, int] = {}
        for key in list(self._calls.keys()):
            value = self._calls.get(key)
            if value is None:
                continue
            since = _VALUE.unpack(value)[6]
            if now - since < OVERDUE:
                continue
            if self._told.get(key) != since:
                self._overdue += 1
            if _thread_lives(key):
                told[key] = since
            else:
                self._calls.remove(key)
        self._told = told
        return self._overdue


def _thread_lives(key: bytes) -> bool:
    thread = _KEY.unpack(key)[0] & 0xFFFFFFFF
    return Path(f"/proc/{thread}").exists()

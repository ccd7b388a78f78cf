"""What the processes are called that made the latest records, kept by the kernel side also when they have ended.

Takes a value of the map `commands` (struct rsyncfs_command of ebpf/maps.h); gives the name at a time. A process has
another name before and after it executes another program, and its number is given to another one after its end.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

_VALUE = struct.Struct("=16s16sQ")
SIZE = _VALUE.size
"""Bytes of a value."""


class Command(NamedTuple):
    """The last two names under one process number."""

    name: bytes
    before: bytes
    """Up to `since`; empty if that process made no record then."""
    since: int
    """CLOCK_MONOTONIC, ns."""

    @classmethod
    def parse(cls, value: bytes) -> Self:
        """Read `SIZE` bytes."""
        name, before, since = _VALUE.unpack(value)
        return cls(name.partition(b"\0")[0], before.partition(b"\0")[0], since)

"""Which files are read, by whomever: fanotify marks on each of them.

Takes paths; gives those of which somebody has read bytes since. Opening is not reading. Root.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from replicator import syscalls

_ACCESS: Final = 0x1
_ADD: Final = 0x1
_UNLIMITED: Final = 0x10 | 0x20  # queue, marks
_NONBLOCK: Final = 0x2
_CLOEXEC: Final = 0x1
_EVENT: Final = struct.Struct("=IBBHQii")


class ReadWatch:
    """A context manager."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        self._fd = -1
        self._read: set[Path] = set()

    def __enter__(self) -> Self:
        self._fd = syscalls.fanotify_init(_UNLIMITED | _NONBLOCK | _CLOEXEC)
        for path in self._paths:
            syscalls.fanotify_mark(self._fd, _ADD, _ACCESS, -100, os.fsencode(path))
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self) -> set[Path]:
        """Those that were read since the watch began."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, 1 << 16):
                for _, _, _, _, _, fd, _ in _EVENT.iter_unpack(data):
                    self._read.add(Path(os.readlink(f"/proc/self/fd/{fd}")))
                    os.close(fd)
        return self._read

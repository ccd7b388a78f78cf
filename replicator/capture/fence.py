"""The reader's epoch, which tells the kernel side how long a write need not be told again.

Takes the map `epoch` of ebpf/repeat.h; `advance` ends the present epoch. When it has returned, whatever the kernel side
left untold in earlier epochs is visible to who reads the files now, and its record is in the ring or was drained from
it (docs/suppression.md).
"""

from __future__ import annotations

import errno
import mmap
import os
from functools import lru_cache
from typing import Final

import numpy as np

from replicator import syscalls
from replicator.capture import bpf
from replicator.capture.epochs import LOW

_ONLINE: Final = "/sys/devices/system/cpu/online"
_ENOTSUPP: Final = 524
"""The kernel's own, which has no name here."""


class Fence:
    """One sensor's epoch; `close` gives its program and memory back."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor`: the map's, which stays the caller's."""
        self._page = mmap.mmap(descriptor, mmap.PAGESIZE)
        self._shared = np.frombuffer(self._page, np.uint64, 1)
        self.epoch = int(self._shared[0])
        """The present one, also if another process began it; 0 while every write is told."""
        self._program = -1
        self._online = os.open(_ONLINE, os.O_RDONLY | os.O_CLOEXEC)

    def advance(self) -> int:
        """Begin the next epoch; returns its number, whose low half is never 0."""
        self.epoch += 1
        if not self.epoch & LOW:
            self.epoch += 1
        self._shared[0] = self.epoch  # in one piece: a program that saw half of it would note an epoch to come
        self._everywhere()
        return self.epoch

    def _everywhere(self) -> None:
        """A full memory barrier on each processor: an interrupt, or the next best thing."""
        try:
            if self._program < 0:
                self._program = bpf.load_program(bpf.PROGRAM_RAW_TRACEPOINT, bpf.RETURN_ZERO, "rsyncfs_fence")
            for cpu in online(os.pread(self._online, 4096, 0)):
                bpf.run_on(self._program, cpu)
        except OSError as fault:
            if fault.errno not in (errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP):
                raise
            syscalls.membarrier()

    def close(self) -> None:
        """May be called twice; nothing else may be called afterwards."""
        self._shared = np.zeros(1, np.uint64)
        self._page.close()
        for descriptor in (self._program, self._online):
            if descriptor >= 0:
                os.close(descriptor)
        self._program = self._online = -1


@lru_cache(maxsize=16)
def online(listed: bytes) -> list[int]:
    """The processors that run, as the kernel lists them: "0-3,5"."""
    found: list[int] = []
    for part in listed.decode("ascii").strip().split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found

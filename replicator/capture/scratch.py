"""Memory that fanotify's events are read into, and that outlives the process: what was read and is not done is in it.

Takes a queue's descriptor; gives the bytes of whole events. Whoever takes the memory over gets all events that were
read and not cleared, also those of a read(2) during which the process was killed. That read's length was never told, so
the memory is blank (`BLANK`) before each read, and events say themselves how long they are. The kernel takes an event
off the queue before it copies it, event after event; a signal does not stop it, only a page that cannot be reached
would: all pages are mapped, and locked, beforehand. Where they could not be locked, or an event has no end, the answer
is in doubt.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import Final, Self

import numpy as np

from replicator import syscalls

SCRATCH_BYTES: Final = 1 << 20
LARGEST_EVENT: Final = 4096
"""No event is longer (bytes): two names and three handles. A read with less room could fail."""
BLANK: Final = 0xFF
"""No event is as long as four of these say, and hardly one ends with them: then it is taken for cut.

Events are multiples of four bytes long, so that no page ends among the last four.
"""

_BLANKS: Final = bytes([BLANK]) * 4
_SHORTEST: Final = 24
_MAGIC: Final = int.from_bytes(b"rsyncfs1", "little")
_HEAD: Final = 4096
_HEADER: Final = np.dtype([("magic", "<u8"), ("held", "<u8"), ("reading", "<u8"), ("locked", "<u8")])
_LENGTH: Final = struct.Struct("=I")


class Scratch:
    """The memory of one queue."""

    def __init__(self, descriptor: int) -> None:
        """Take over a memory, which is this object's own then. ValueError if it is none of these; OSError."""
        self.descriptor = descriptor
        try:
            size = os.fstat(descriptor).st_size
            if size < _HEAD + LARGEST_EVENT:
                raise ValueError("not a memory of events")
            self._memory = mmap.mmap(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        self._view = memoryview(self._memory)
        self._header = np.frombuffer(self._memory, _HEADER, 1)
        self._data = self._view[_HEAD:]
        self._used = len(self._data)
        """Bytes that may not be blank."""
        magic, held, reading, _ = self._header[0].tolist()
        if magic != _MAGIC or held > len(self._data):
            self.close()
            raise ValueError("not a memory of events")
        self.left = bool(held or reading)
        """Whether another process has left events."""
        if not self.left:
            self.clear()
        self._locked = self._lock()

    @classmethod
    def make(cls, size: int = SCRATCH_BYTES) -> Self:
        """A new one for `size` bytes of events, at least `LARGEST_EVENT`. OSError."""
        descriptor = os.memfd_create("rsyncfs-names", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _HEAD + size)
        os.pwrite(descriptor, np.array((_MAGIC, 0, 0, 0), _HEADER).tobytes(), 0)
        return cls(descriptor)

    def recovered(self) -> tuple[bytes, bool]:
        """Events that another process left, once; and whether there may have been others."""
        self.left = False
        header = self._header[0]
        held = int(header["held"])
        if not header["reading"]:
            return bytes(self._data[:held]), False
        length, cut = whole(self._data[held:])
        doubt = cut or not header["locked"]
        held += length
        header["held"] = held
        self._blank(held, len(self._data))
        header["reading"] = 0
        return bytes(self._data[:held]), doubt

    def read(self, queue: int) -> bytes | None:
        """The next events; empty when none wait, None when there is no room left. Blocks if the queue does."""
        header = self._header[0]
        held = int(header["held"])
        if len(self._data) - held < LARGEST_EVENT:
            return None
        header["locked"] = self._locked
        header["reading"] = 1
        try:
            length = os.readv(queue, [self._data[held:]])
        except BlockingIOError:
            length = 0
        self._used = max(self._used, held + length)
        header["held"] = held + length
        header["reading"] = 0
        return bytes(self._data[held : held + length])

    def clear(self) -> None:
        """Everything in it is done."""
        if not self._used:
            return
        header = self._header[0]
        header["held"] = 0  # first: what is half blank must not be taken for events
        header["reading"] = 0
        self._blank(0, self._used)
        self._used = 0

    def close(self) -> None:
        """Unmap and close. May be called twice."""
        if self.descriptor < 0:
            return
        os.close(self.descriptor)
        self.descriptor = -1
        self._header = np.zeros(1, _HEADER)
        self._data.release()
        self._view.release()
        self._memory.close()

    def _blank(self, begin: int, end: int) -> None:
        ctypes.memset(self._address() + _HEAD + begin, BLANK, end - begin)

    def _address(self) -> int:
        return int(self._header.ctypes.data)

    def _lock(self) -> bool:
        """Lock all pages, which were mapped when they were blanked."""
        try:
            syscalls.mlock(self._address(), len(self._memory))
        except OSError:
            return False
        return True


def whole(data: bytes | memoryview) -> tuple[int, bool]:
    """What a read of unknown length has put into blank memory: bytes of whole events, and whether a cut one follows."""
    at = 0
    while at + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        if data[at : at + len(_BLANKS)] == _BLANKS:
            break
        end = at + length
        if length < _SHORTEST or end > len(data) or data[end - len(_BLANKS) : end] == _BLANKS:
            return at, True
        at = end
    return at, False

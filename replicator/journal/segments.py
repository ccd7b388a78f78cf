"""The journal's files: frames with a checksum, appended to numbered segments.

Takes bytes with a kind; gives them back in order. A frame is complete or it is not there: what was being appended when
the process died or the power went is recognised by length and checksum, and so is everything behind it. Nothing is
synced but on demand. OSError when the disk does not take it; nothing of that frame counts then.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_HEAD: Final = struct.Struct("<4sIII")  # magic, kind, length (bytes), CRC-32 of kind, length and payload
_COVERED: Final = struct.Struct("<II")
_MAGIC: Final = b"rsfJ"
MOST: Final = 64 << 20
"""Bytes of a payload: a longer one is damage."""


class Frame(NamedTuple):
    """One frame; `kind` is the writer's own number."""

    kind: int
    payload: bytes


class Damaged(Exception):
    """A segment that something was appended after does not end where it should."""


def framed(kind: int, payload: bytes) -> tuple[bytes, bytes]:
    """(header, payload) of a frame."""
    check = zlib.crc32(payload, zlib.crc32(_COVERED.pack(kind, len(payload))))
    return _HEAD.pack(_MAGIC, kind, len(payload), check), payload


def frames(data: bytes) -> Iterator[Frame]:
    """The frames at the beginning of `data`, as far as they are whole."""
    at = 0
    while at + _HEAD.size <= len(data):
        magic, kind, length, check = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + length
        if magic != _MAGIC or length > MOST or end > len(data):
            return
        payload = data[at + _HEAD.size : end]
        if zlib.crc32(payload, zlib.crc32(_COVERED.pack(kind, length))) != check:
            return
        yield Frame(kind, payload)
        at = end


def sound(data: bytes) -> int:
    """How many bytes at the beginning of `data` are whole frames."""
    return sum(_HEAD.size + len(frame.payload) for frame in frames(data))


class Segments:
    """The files of one directory. The newest is appended to; older ones are only read and removed."""

    def __init__(self, directory: Path) -> None:
        """`directory` is made if it is missing. Old segments stay as they are."""
        directory.mkdir(mode=0o700, exist_ok=True)
        self._directory = directory
        self._fd = -1
        self.numbers = sorted(int(path.suffix[1:]) for path in directory.glob("segment.*") if path.suffix[1:].isdigit())
        """Of all segments there are, oldest first."""
        self.written = 0
        """Bytes in the newest."""

    def read(self) -> Iterator[Frame]:
        """Every frame, oldest first. Damaged if one is missing that others were appended after.

        What was being appended when the writer died is cut off.
        """
        for number in list(self.numbers):
            data = self._path(number).read_bytes()
            length = sound(data)
            if length != len(data):
                if number != self.numbers[-1]:
                    raise Damaged(f"{self._path(number)} is damaged")
                os.truncate(self._path(number), length)
            yield from frames(data)

    def begin(self) -> int:
        """Append to a new segment from here on; its number."""
        number = self.numbers[-1] + 1 if self.numbers else 1
        fd = os.open(self._path(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.close()
        self._fd, self.written = fd, 0
        self.numbers.append(number)
        return number

    def append(self, kind: int, payload: bytes) -> None:
        """Append a frame: when it returns, the frame survives the death of the process."""
        head, _ = framed(kind, payload)
        length = len(head) + len(payload)
        done = os.writev(self._fd, (head, payload))
        if done != length:
            os.ftruncate(self._fd, self.written)  # half a frame would hide the next
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path(self.numbers[-1])))
        self.written += length

    def duplicate(self) -> int:
        """A descriptor of the newest segment, to be synced and closed by the caller."""
        return os.dup(self._fd)

    def remove(self, up_to: int) -> None:
        """Remove the segments up to number `up_to`."""
        while self.numbers and self.numbers[0] <= up_to:
            self._path(self.numbers[0]).unlink(missing_ok=True)
            del self.numbers[0]

    def remove_all(self) -> None:
        """Remove all, the newest too."""
        self.close()
        if self.numbers:
            self.remove(self.numbers[-1])

    def size(self) -> int:
        """Bytes of all segments."""
        total = 0
        for number in self.numbers:
            path = self._path(number)
            total += path.stat().st_size if path.exists() else 0
        return total

    def close(self) -> None:
        """Leave the files as they are."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _path(self, number: int) -> Path:
        return self._directory / f"segment.{number}"

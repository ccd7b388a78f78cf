"""System calls that Python's `os` lacks, for the tests' own writers.

Takes descriptors and numbers; a failure is an OSError. Independent of the product's module of that name, so that a
wrong constant there cannot hide here.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path

KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
COLLAPSE_RANGE = 0x08
ZERO_RANGE = 0x10
INSERT_RANGE = 0x20

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D
_AT_FDCWD = -100
_AT_SYMLINK_FOLLOW = 0x400

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: os.PathLike[str] | str | None = None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), None if path is None else os.fspath(path))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with its modes."""
    _check(_libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def clone(destination: int, source: int) -> None:
    """FICLONE: the whole of `source` becomes the content of `destination`."""
    fcntl.ioctl(destination, _FICLONE, source)


def clone_range(destination: int, source: int, source_offset: int, length: int, offset: int) -> None:
    """FICLONERANGE."""
    fcntl.ioctl(destination, _FICLONERANGE, struct.pack("=qQQQ", source, source_offset, length, offset))


def renameat2(old: Path | bytes, new: Path | bytes, flags: int) -> None:
    """renameat2(2) with RENAME_EXCHANGE or RENAME_NOREPLACE."""
    _check(_libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags), os.fsdecode(old))


def link_descriptor(fd: int, path: Path) -> None:
    """Give an O_TMPFILE its first name."""
    _check(
        _libc.linkat(_AT_FDCWD, f"/proc/self/fd/{fd}".encode(), _AT_FDCWD, os.fsencode(path), _AT_SYMLINK_FOLLOW),
        path,
    )


def syncfs(fd: int) -> None:
    """Write out the whole filesystem that the descriptor is on."""
    _check(_libc.syncfs(fd))

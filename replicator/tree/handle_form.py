"""What file handles look like on each filesystem that can be replicated.

Takes a handle as the kernel gives it (type, bytes) and gives the FileId in it, or the other way round. Knows the forms
without a parent directory only, which are all that is asked for. No I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from replicator.model import FileId

_TWO: Final = struct.Struct("=II")
_THREE: Final = struct.Struct("=III")
_WIDE: Final = struct.Struct("=QI")
_BTRFS: Final = struct.Struct("=QQI")

_INO32, _XFS_WIDE, _BTRFS_ALONE = 0x01, 0x81, 0x4D


def _parse_ext4(kind: int, handle: bytes) -> FileId:
    if kind != _INO32 or len(handle) != 8:
        raise ValueError(f"not a handle of ext4: type {kind:#x}, {handle.hex()}")
    ino, gen = _TWO.unpack(handle)
    return FileId(0, 0, ino, gen)


def _parse_xfs(kind: int, handle: bytes) -> FileId:
    if kind == _XFS_WIDE and len(handle) == 12:
        ino, gen = _WIDE.unpack(handle)
    elif kind == _INO32 and len(handle) == 8:
        ino, gen = _TWO.unpack(handle)
    else:
        raise ValueError(f"not a handle of XFS: type {kind:#x}, {handle.hex()}")
    return FileId(0, 0, ino, gen)


def _parse_btrfs(kind: int, handle: bytes) -> FileId:
    if kind != _BTRFS_ALONE or len(handle) != 20:
        raise ValueError(f"not a handle of btrfs: type {kind:#x}, {handle.hex()}")
    ino, root, gen = _BTRFS.unpack(handle)
    return FileId(0, root, ino, gen)


def _parse_tmpfs(kind: int, handle: bytes) -> FileId:
    if kind != _INO32 or len(handle) != 12:
        raise ValueError(f"not a handle of tmpfs: type {kind:#x}, {handle.hex()}")
    gen, low, high = _THREE.unpack(handle)
    return FileId(0, 0, high << 32 | low, gen)


def _build_ext4(id: FileId) -> tuple[int, bytes]:
    return _INO32, _TWO.pack(id.ino, id.gen)


def _build_xfs(id: FileId) -> tuple[int, bytes]:
    return _XFS_WIDE, _WIDE.pack(id.ino, id.gen)


def _build_btrfs(id: FileId) -> tuple[int, bytes]:
    return _BTRFS_ALONE, _BTRFS.pack(id.ino, id.root, id.gen)


def _build_tmpfs(id: FileId) -> tuple[int, bytes]:
    return _INO32, _THREE.pack(id.gen, id.ino & 0xFFFFFFFF, id.ino >> 32)


Parse = Callable[[int, bytes], FileId]
Build = Callable[[FileId], tuple[int, bytes]]
FORMS: Final[dict[str, tuple[Parse, Build]]] = {
    "ext4": (_parse_ext4, _build_ext4),
    "xfs": (_parse_xfs, _build_xfs),
    "btrfs": (_parse_btrfs, _build_btrfs),
    "tmpfs": (_parse_tmpfs, _build_tmpfs),
}
"""By type of filesystem: how to take a handle apart (ValueError if it is of another form) and put one together."""

ARRAYS: Final[dict[str, dict[tuple[int, int], np.dtype[Any]]]] = {
    "ext4": {(_INO32, 8): np.dtype([("ino", "<u4"), ("gen", "<u4")])},
    "xfs": {
        (_XFS_WIDE, 12): np.dtype([("ino", "<u8"), ("gen", "<u4")]),
        (_INO32, 8): np.dtype([("ino", "<u4"), ("gen", "<u4")]),
    },
    "btrfs": {(_BTRFS_ALONE, 20): np.dtype([("ino", "<u8"), ("root", "<u8"), ("gen", "<u4")])},
    "tmpfs": {(_INO32, 12): np.dtype([("gen", "<u4"), ("ino", "<u8")])},
}
"""The same forms for many handles at once: by type and length of a handle, what its bytes are."""

"""btrfs's trees, searched by ioctl: items in bulk, in the order of their keys.

Takes a descriptor on the filesystem and bounds; gives Items, which lie in the caller's buffer until the next search. A
tree is read leaf by leaf while others change it: each leaf is whole, but not all are of the same moment.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replicator import syscalls
from replicator.scan.row import Numbers

TREE_SEARCH: Final = 0xC0709411  # BTRFS_IOC_TREE_SEARCH_V2
_KEY: Final = struct.Struct("=7Q4I4QQ")  # struct btrfs_ioctl_search_key, and the size of the room behind it
_FOUND_AT: Final = 64  # nr_items
_HEADER: Final = struct.Struct("=QQQII")  # transid, objectid, offset, type, length
_REST: Final = struct.Struct("=II")  # type, length
_REST_AT: Final = 24
_MAX: Final = 2**64 - 1

ROOM: Final = 1 << 17
"""Bytes of items at a time; more than the largest item."""

FIRST: Final = 256
"""The lowest number of an inode or subvolume (BTRFS_FIRST_FREE_OBJECTID)."""

LAST: Final = 2**64 - 256
"""The highest."""


class Key(NamedTuple):
    """What items are sorted by."""

    objectid: int
    kind: int
    offset: int


class Items(NamedTuple):
    """What one search found."""

    places: list[int]
    """Where the items lie in the buffer, their headers first, that are of the kinds which were asked for."""
    last: Key
    """Of all that were found, of whatever kind."""


def new_buffer() -> Numbers:
    """Room for what a search finds."""
    return np.zeros(_KEY.size + ROOM, np.uint8)


def search(
    fd: int, buffer: Numbers, tree: int, low: Key, high: Key, kinds: frozenset[int], oldest: int = 0
) -> Items | None:
    """The next items from `low` to `high` in leaves written by transaction `oldest` or later; None if there are none.

    OSError; ENOENT if there is no such tree.
    """
    _KEY.pack_into(
        buffer.data,
        0,
        *(tree, low.objectid, high.objectid, low.offset, high.offset, oldest, _MAX),
        *(low.kind, high.kind, 2**32 - 1, 0),
        *(0, 0, 0, 0),
        ROOM,
    )
    syscalls.ioctl_at(fd, TREE_SEARCH, buffer.ctypes.data)
    (count,) = struct.unpack_from("=I", buffer.data, _FOUND_AT)
    if not count:
        return None
    places: list[int] = []
    raw, rest, end = buffer.data, _REST.unpack_from, len(buffer) - _HEADER.size
    at = last = _KEY.size
    for _ in range(count):
        if at > end:
            raise ValueError("an item lies outside of its room")
        kind, length = rest(raw, at + _REST_AT)
        if kind in kinds:
            places.append(at)
        last, at = at, at + _HEADER.size + length
    if at > len(buffer):
        raise ValueError("an item lies outside of its room")
    _, objectid, offset, kind, _ = _HEADER.unpack_from(raw, last)
    return Items(places, Key(objectid, kind, offset))


def gather(buffer: Numbers, places: list[int], data: np.dtype[Any]) -> NDArray[Any]:
    """Items of that many bytes as an array of (header, data); those whose data is shorter are left out."""
    whole = np.dtype([("transid", "<u8"), ("objectid", "<u8"), ("offset", "<u8"), ("kind", "<u4"), ("length", "<u4")])
    item = np.dtype([("header", whole), ("data", data)])
    # Items begin anywhere, and the end of the last may have no room for a whole one behind it.
    everywhere: NDArray[Any] = np.ndarray((len(buffer) - item.itemsize + 1,), item, buffer, strides=(1,))
    found = everywhere[np.array([at for at in places if at < len(everywhere)], np.intp)]
    return found[found["header"]["length"] >= data.itemsize]

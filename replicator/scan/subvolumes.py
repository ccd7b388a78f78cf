"""The btrfs subvolumes whose inodes are in the source: its own, and those that lie in its tree.

Takes a SourceRoot on btrfs; gives root ids, each with the transaction that made it. Doubt takes one in: where a
directory was moved meanwhile, or its path is too long to be told.
"""

from __future__ import annotations

import fcntl
import struct
from typing import Final, NamedTuple

import numpy as np

from replicator.scan.btrfs_search import FIRST, LAST, Key, gather, new_buffer, search
from replicator.scan.row import Numbers
from replicator.tree.handles import SourceRoot

UNKNOWN: Final = 2**64 - 1
"""Later than any transaction."""

_MAX: Final = 2**64 - 1
_ROOT_TREE: Final = 1
_ROOT_ITEM, _ROOT_BACKREF = 132, 144
_INO_LOOKUP: Final = 0xD0009412  # BTRFS_IOC_INO_LOOKUP
_LOOKUP_BYTES: Final = 4096
_LOOKUP: Final = struct.Struct("=QQ")  # treeid, objectid; the path follows

_ROOT: Final = np.dtype(
    {
        "names": ["generation", "generation_v2", "otransid"],
        "formats": ["<u8", "<u8", "<u8"],
        "offsets": [160, 239, 303],
        "itemsize": 439,
    }
)
"""What counts here of struct btrfs_root_item."""

_PLACE: Final = np.dtype([("directory", "<u8")])
"""How struct btrfs_root_ref begins: the inode, in the parent, of the directory that the subvolume is in."""


class _Place(NamedTuple):
    parent: int
    directory: int


def subvolumes(source: SourceRoot) -> dict[int, int]:
    """By root id: the transaction in which it was made; 0 for the filesystem's first. OSError."""
    made, places = _all(source.read_fd)
    inside: dict[int, bool] = {source.id.root: True}
    top = _path(source.read_fd, source.id.root, source.id.ino)

    def lies_inside(root: int) -> bool:
        chain: list[int] = []
        while root not in inside:
            chain.append(root)
            place = places.get(root)
            if place is None or root in chain[:-1]:
                inside[root] = False  # the filesystem's first, or one that has been removed
            elif place.parent == source.id.root:
                path = _path(source.read_fd, place.parent, place.directory)
                inside[root] = top is None or path is None or path.startswith(top)
            else:
                root = place.parent
        for each in chain:
            inside[each] = inside[root]
        return inside[root]

    unknown = {root: UNKNOWN if root >= FIRST else 0 for root in (source.id.root, *places)}
    return {root: made.get(root, otherwise) for root, otherwise in unknown.items() if lies_inside(root)}


def _all(fd: int) -> tuple[dict[int, int], dict[int, _Place]]:
    """Of all subvolumes: when they were made, and where they are."""
    made: dict[int, int] = {}
    places: dict[int, _Place] = {}
    buffer = new_buffer()
    low, high = Key(FIRST, _ROOT_ITEM, 0), Key(LAST, _ROOT_BACKREF, _MAX)
    kinds = frozenset((_ROOT_ITEM, _ROOT_BACKREF))
    while True:
        found = search(fd, buffer, _ROOT_TREE, low, high, kinds)
        if found is None:
            return made, places
        roots = [at for at in found.places if _kind(buffer, at) == _ROOT_ITEM]
        for item in gather(buffer, roots, _ROOT):
            data, root = item["data"], int(item["header"]["objectid"])
            known = data["generation"] == data["generation_v2"]  # the newer fields are kept up
            made[root] = int(data["otransid"]) if known else UNKNOWN
        for item in gather(buffer, [at for at in found.places if _kind(buffer, at) == _ROOT_BACKREF], _PLACE):
            places[int(item["header"]["objectid"])] = _Place(
                int(item["header"]["offset"]), int(item["data"]["directory"])
            )
        last = found.last
        low = last._replace(offset=last.offset + 1) if last.offset < _MAX else Key(last.objectid, last.kind + 1, 0)


def _kind(buffer: Numbers, at: int) -> int:
    (kind,) = struct.unpack_from("=I", buffer.data, at + 24)
    return int(kind)


def _path(fd: int, root: int, inode: int) -> bytes | None:
    """From the subvolume's top down to a directory in it, with a slash at its end; None if the kernel does not tell."""
    answer = bytearray(_LOOKUP.pack(root, inode).ljust(_LOOKUP_BYTES, b"\0"))
    try:
        fcntl.ioctl(fd, _INO_LOOKUP, answer)
    except OSError:
        return None
    return bytes(answer[_LOOKUP.size :].partition(b"\0")[0])

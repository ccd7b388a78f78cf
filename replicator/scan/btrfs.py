"""The inodes of a btrfs, all or those changed lately, from its trees.

Takes a SourceRoot on btrfs; is a Scan of the subvolumes that are in the source (subvolumes.py). btrfs writes changed
leaves anew and notes in each the transaction that did, so that unchanged parts of a tree are passed by. Rows of
unchanged inodes that share a leaf with a changed one come along.

Changes wait for a while before they are put into the tree; syncfs(2) before the scan brings them.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import struct
from collections.abc import Generator, Iterator
from typing import Final

import numpy as np

from replicator.errors import EnvironmentFault
from replicator.host import boot_id
from replicator.scan.btrfs_search import FIRST, LAST, Key, gather, new_buffer, search
from replicator.scan.parallel import side_by_side
from replicator.scan.row import BATCH, INODE, NANOSECONDS, Numbers, Rows, known_kind
from replicator.scan.subvolumes import subvolumes
from replicator.tree.handles import SourceRoot

_INODE_ITEM: Final = 1
_FS_INFO: Final = 0x8400941F  # BTRFS_IOC_FS_INFO
_FS_INFO_BYTES: Final = 1024
_GENERATION: Final = 2  # BTRFS_FS_INFO_FLAG_GENERATION
_FSID_AT, _FLAGS_AT, _GENERATION_AT = 16, 48, 56

_ITEM: Final = np.dtype(
    {
        "names": ["generation", "size", "nlink", "mode", "ctime", "ctime_ns", "mtime", "mtime_ns"],
        "formats": ["<u8", "<u8", "<u4", "<u4", "<i8", "<u4", "<i8", "<u4"],
        "offsets": [0, 16, 40, 52, 124, 132, 136, 144],
        "itemsize": 160,
    }
)
"""What counts here of struct btrfs_inode_item."""

log = logging.getLogger(__name__)


class BtrfsScan:
    """See Scan. EnvironmentFault at construction if the kernel refuses."""

    complete: bool

    def __init__(self, source: SourceRoot, since: str | None = None) -> None:
        """`since` is the `mark` of an earlier scan of this filesystem; of another one, or before a boot, it is void."""
        self._source = source
        try:
            self._fsid, generation = _filesystem(source.read_fd)
            self._subvolumes = subvolumes(source)
        except (OSError, ValueError) as error:
            raise self._refused(error) from error
        # The transaction that is under way goes on to change leaves.
        self._last = generation - 1
        past = self._past(since) if since is not None else None
        self._oldest = 0 if past is None else past + 1
        self.complete = past is None

    def mark(self) -> str | None:
        """The transaction before the one that was under way when the scan began, in this boot of this filesystem."""
        return f"{self._fsid}:{boot_id()}:{self._last}"

    def _past(self, since: str) -> int | None:
        """The transaction that a mark names. None if it says nothing of what has changed here since.

        A host that crashed has lost changes which an earlier scan may have told of, and what it shows instead is old.
        """
        fsid, _, rest = since.partition(":")
        boot, _, number = rest.partition(":")
        if fsid == self._fsid and boot == boot_id() and number.isdecimal() and int(number) <= self._last:
            return int(number)
        log.info(
            "the filesystem of %s was booted or replaced since the last scan: all of it is read", self._source.path
        )
        return None

    def __iter__(self) -> Iterator[Rows]:
        return side_by_side([self._subvolume(root, made) for root, made in self._subvolumes.items()])

    def _subvolume(self, root: int, made: int) -> Generator[Rows, None, None]:
        """Batches of one subvolume. The leaves of a new snapshot are those of its origin, and as old."""
        oldest = 0 if made >= self._oldest else self._oldest
        kept: list[Rows] = []
        count = 0
        try:
            for rows in _inodes(self._source.read_fd, root, oldest):
                kept.append(rows)
                count += len(rows)
                if count >= BATCH:
                    yield np.concatenate(kept)
                    kept, count = [], 0
        except (OSError, ValueError) as error:
            if not (isinstance(error, OSError) and error.errno == errno.ENOENT and root != self._source.id.root):
                raise self._refused(error) from error
            # The subvolume has been removed meanwhile.
        if count:
            yield np.concatenate(kept)

    def _refused(self, error: OSError | ValueError) -> EnvironmentFault:
        if isinstance(error, OSError) and error.errno == errno.EPERM:
            return EnvironmentFault(
                f"Cannot search the trees of {self._source.path}: {error.strerror}; it needs CAP_SYS_ADMIN:"
                " run as root."
            )
        why = error.strerror if isinstance(error, OSError) else error
        return EnvironmentFault(
            f"Cannot search the trees of {self._source.path}: {why}; check the kernel log and the filesystem"
            " (btrfs scrub), or use --scan walk."
        )


def _filesystem(fd: int) -> tuple[str, int]:
    """Its id, and the newest transaction that has begun."""
    answer = bytearray(_FS_INFO_BYTES)
    struct.pack_into("=Q", answer, _FLAGS_AT, _GENERATION)
    fcntl.ioctl(fd, _FS_INFO, answer)
    (flags,) = struct.unpack_from("=Q", answer, _FLAGS_AT)
    (generation,) = struct.unpack_from("=Q", answer, _GENERATION_AT)
    if not flags & _GENERATION or not generation:
        raise ValueError("this kernel does not tell which transaction is under way")
    return answer[_FSID_AT : _FSID_AT + 16].hex(), generation


def _inodes(fd: int, root: int, oldest: int) -> Iterator[Rows]:
    """Rows of a subvolume, in the order of their numbers."""
    buffer = new_buffer()
    low, high = Key(FIRST, _INODE_ITEM, 0), Key(LAST, 255, 2**64 - 1)
    kinds = frozenset((_INODE_ITEM,))
    while low.objectid <= LAST:
        found = search(fd, buffer, root, low, high, kinds, oldest)
        if found is None:
            return
        yield decode(gather(buffer, found.places, _ITEM), root)
        # What else there is of the last inode (names in a directory, extents) is not wanted.
        low = Key(found.last.objectid + 1, _INODE_ITEM, 0)


def decode(items: Numbers, root: int) -> Rows:
    """Rows of the named ones among inode items as `gather` gives them."""
    data = items["data"]
    live = (data["nlink"] != 0) & known_kind(data["mode"])
    items, data = items[live], data[live]
    rows = np.zeros(len(items), INODE)
    rows["ino"] = items["header"]["objectid"]
    rows["root"] = root
    rows["gen"] = data["generation"] & 0xFFFFFFFF  # what a file handle has room for
    for field in ("mode", "nlink", "size"):
        rows[field] = data[field]
    for field in ("ctime", "mtime"):
        rows[field] = data[field] * np.int64(NANOSECONDS) + data[f"{field}_ns"]
    return rows

"""All inodes of an XFS, from its bulkstat ioctl, allocation groups side by side.

Takes a SourceRoot on XFS; is a Scan. The kernel looks at each inode as it has it in memory, times included; the size
is the one written down (syncfs(2) before the scan brings it). The filesystem's own inodes are left out by the kernel.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Generator, Iterator
from typing import Final

import numpy as np

from replicator import syscalls
from replicator.errors import EnvironmentFault
from replicator.scan.parallel import side_by_side
from replicator.scan.row import INODE, NANOSECONDS, Numbers, Rows, known_kind
from replicator.tree.handles import SourceRoot

_GEOMETRY: Final = 0x80705864  # XFS_IOC_FSGEOMETRY_V1
_GEOMETRY_BYTES: Final = 112
_BULKSTAT: Final = 0x8040587F  # XFS_IOC_BULKSTAT
_ONE_GROUP: Final = 1  # XFS_BULK_IREQ_AGNO
_REQUEST: Final = struct.Struct("=QIIII40x")  # ino, flags, icount, ocount, agno

RECORDS: Final = 4096
"""Inodes asked for at a time."""

_RECORD: Final = np.dtype(
    {
        "names": ["ino", "size", "mtime", "ctime", "gen", "mtime_ns", "ctime_ns", "nlink", "mode"],
        "formats": ["=u8", "=u8", "=i8", "=i8", "=u4", "=u4", "=u4", "=u4", "=u2"],
        "offsets": [0, 8, 40, 48, 64, 84, 88, 112, 132],
        "itemsize": 192,
    }
)
"""What counts here of struct xfs_bulkstat."""


class XfsScan:
    """See Scan. EnvironmentFault at construction if the kernel refuses."""

    complete = True

    def __init__(self, source: SourceRoot) -> None:
        self._source = source
        geometry = bytearray(_GEOMETRY_BYTES)
        try:
            fcntl.ioctl(source.read_fd, _GEOMETRY, geometry)
            (self._groups,) = struct.unpack_from("=I", geometry, 12)
            request = bytearray(_REQUEST.pack(source.id.ino, 0, 1, 0, 0)) + bytearray(_RECORD.itemsize)
            fcntl.ioctl(source.read_fd, _BULKSTAT, request)
        except OSError as error:
            raise self._refused(error) from error
        own = np.frombuffer(request, _RECORD, 1, _REQUEST.size)[0]
        if (own["ino"], own["gen"]) != (source.id.ino, source.id.gen):
            raise EnvironmentFault(
                f"Cannot ask XFS for all inodes of {source.path}: it shows others than file handles do; use"
                " --scan walk."
            )

    def mark(self) -> str | None:
        """Nothing: the kernel is not asked since when."""
        return None

    def __iter__(self) -> Iterator[Rows]:
        return side_by_side([self._group(number) for number in range(self._groups)])

    def _group(self, number: int) -> Generator[Rows, None, None]:
        """Batches of one allocation group."""
        request = np.zeros(_REQUEST.size + RECORDS * _RECORD.itemsize, np.uint8)
        inode = 0
        while True:
            _REQUEST.pack_into(request.data, 0, inode, _ONE_GROUP, RECORDS, 0, number)
            try:
                syscalls.ioctl_at(self._source.read_fd, _BULKSTAT, request.ctypes.data)
            except InterruptedError:
                continue
            except OSError as error:
                raise self._refused(error) from error
            inode, _, _, found, _ = _REQUEST.unpack_from(request.data)
            if not found:
                return
            yield decode(request[_REQUEST.size :].view(_RECORD)[:found])

    def _refused(self, error: OSError) -> EnvironmentFault:
        cure = {
            errno.EPERM: "it needs CAP_SYS_ADMIN; run as root",
            errno.EINVAL: "the mount may be idmapped; use another one, or --scan walk",
        }.get(error.errno or 0, "check the kernel log and the filesystem (xfs_repair), or use --scan walk")
        return EnvironmentFault(f"Cannot ask XFS for all inodes of {self._source.path}: {error.strerror}; {cure}.")


def decode(records: Numbers) -> Rows:
    """Rows of those with a name, of an array of struct xfs_bulkstat."""
    records = records[(records["nlink"] != 0) & known_kind(records["mode"].astype(np.uint32))]
    rows = np.zeros(len(records), INODE)
    for field in ("ino", "gen", "mode", "nlink", "size"):
        rows[field] = records[field]
    for field in ("ctime", "mtime"):
        rows[field] = records[field] * np.int64(NANOSECONDS) + records[f"{field}_ns"]
    return rows

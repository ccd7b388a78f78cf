"""Which mount of its filesystem a source is on: what was seen ends when that is unmounted, for it may change elsewhere.

Takes a SourceRoot; gives words that are the same as long as the filesystem stays mounted, anywhere, and never again
afterwards. Empty where the kernel has nothing to tell it by.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path

from replicator import syscalls
from replicator.tree.handles import SourceRoot

_BTRFS_FS_INFO = 0x8400941F
_FSID_AT = 16


def mounted_as(source: SourceRoot) -> str:
    """The words for it."""
    try:
        if source.fstype == "tmpfs":
            # which is gone when it is unmounted, and whose inodes tell when they were made
            made = syscalls.statx(source.fd, b"", syscalls.AT_EMPTY_PATH, syscalls.STATX_BTIME)
            return f"{source.id.text()} {made.btime_ns}" if made.mask & syscalls.STATX_BTIME else ""
        # The kernel makes this directory when it mounts, and never gives its number again.
        return str(os.stat(Path("/sys/fs") / source.fstype / _name(source)).st_ino)
    except OSError:
        return ""


def _name(source: SourceRoot) -> str:
    """What sysfs calls the filesystem."""
    if source.fstype == "btrfs":
        info = fcntl.ioctl(source.read_fd, _BTRFS_FS_INFO, bytes(1024))
        return str(uuid.UUID(bytes=info[_FSID_AT : _FSID_AT + 16]))
    device = Path(f"/sys/dev/block/{source.kernel_dev >> 20}:{source.kernel_dev & 0xFFFFF}")
    return device.resolve(strict=True).name

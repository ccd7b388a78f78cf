"""Is this the directory we think it is? The checks on a replica's root before anything is done in it.

Takes an open root and paths; raises EnvironmentFault with the cure. The key that recognises a root again is the
filesystem's UUID with the directory's file handle: it changes when another filesystem is mounted there, or none.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from replicator.errors import EnvironmentFault
from replicator.mirror.ground import handle_of

_FS_IOC_GETFSUUID = 0x80111500
_VOLATILE_FSID = (0x58465342,)
"""XFS: its f_fsid comes from the device number, which a reboot may change."""
_ALWAYS = "lost+found"


def open_root(root: Path) -> int:
    """A descriptor of the root, locked against a second receiver as long as it is open."""
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise EnvironmentFault(f"the replica root {root} does not exist: create it, or mount it first") from None
    except NotADirectoryError:
        raise EnvironmentFault(f"the replica root {root} is not a directory: name one") from None
    except OSError as error:
        raise EnvironmentFault(f"the replica root {root} cannot be opened: {error.strerror}") from None
    lock(fd, f"the replica root {root}")
    return fd


def lock(fd: int, what: str) -> None:
    """EnvironmentFault if another process has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise EnvironmentFault(f"{what} is in use by another receiver: stop that one first") from None


def root_key(fd: int, root: Path) -> str:
    """What recognises this root again."""
    try:
        handle = handle_of(fd, b"")
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EOVERFLOW):
            raise EnvironmentFault(f"the replica root {root}: {error.strerror}") from None
        raise EnvironmentFault(
            f"the filesystem of {root} has no file handles: put the replica on ext4, XFS, btrfs or tmpfs"
        ) from None
    assert handle is not None
    return f"{_filesystem(fd).hex()}:{handle.hex()}"


def is_empty(fd: int) -> bool:
    """Nothing is in it but what mkfs puts there."""
    return all(name == _ALWAYS for name in os.listdir(fd))


def _filesystem(fd: int) -> bytes:
    buffer = bytearray(17)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFSUUID, buffer)
        return bytes(buffer[1 : 1 + buffer[0]])
    except OSError:
        status = os.fstatvfs(fd)
        return b"" if _magic(fd) in _VOLATILE_FSID else status.f_fsid.to_bytes(8, "little")


def _magic(fd: int) -> int:
    """XFS is the only one whose f_fsid moves; it is told by an ioctl that only it has."""
    try:
        fcntl.ioctl(fd, 0x8100587E, bytearray(256))  # XFS_IOC_FSGEOMETRY
    except OSError:
        return 0
    return _VOLATILE_FSID[0]

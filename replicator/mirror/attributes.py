"""Owner, mode, extended attributes and modification time of one inode, made exactly those of a fact.

Takes an O_PATH descriptor. Only what differs is changed. The order matters: a new owner strips setuid bits and
capabilities, an ACL changes the mode, so: owner, xattrs, mode, security.capability. Times are set by `set_time`, last.
What belongs to the replica's own filesystem (btrfs.*, security.selinux where the source has none) is left alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from replicator import syscalls
from replicator.model import Attributes, Kind, kind_of, replicated_xattr

_CAPABILITY = b"security.capability"
_SECOND = 1_000_000_000
_FAR = 2**31 * _SECOND
_LABEL = b"security.selinux"


def replicated_xattrs(fd: int) -> dict[bytes, bytes]:
    """The extended attributes that belong to the tree, of any inode (O_PATH will do)."""
    return {name: value for name, value in syscalls.get_xattrs(fd).items() if replicated_xattr(name)}


def read_attributes(fd: int) -> tuple[Kind, int, Attributes]:
    """Kind, size in bytes (0 if no regular file) and attributes of an O_PATH descriptor."""
    status = os.fstat(fd)
    kind = kind_of(status.st_mode)
    target = os.readlink(b"", dir_fd=fd) if kind is Kind.SYMLINK else b""
    rdev = status.st_rdev if kind in (Kind.CHARACTER, Kind.BLOCK) else 0
    attributes = Attributes(
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        rdev=rdev,
        target=target,
        xattrs=replicated_xattrs(fd),
    )
    return kind, status.st_size if kind is Kind.FILE else 0, attributes


def differ(fd: int, wanted: Attributes) -> bool:
    """Whether owner, mode or xattrs are not those wanted."""
    status = os.fstat(fd)
    if (status.st_uid, status.st_gid) != (wanted.uid, wanted.gid):
        return True
    if not stat.S_ISLNK(status.st_mode) and stat.S_IMODE(status.st_mode) != wanted.mode:
        return True
    return _own(replicated_xattrs(fd), wanted) != _own(wanted.xattrs, wanted)


def apply(fd: int, wanted: Attributes) -> None:
    """Set owner, xattrs and mode."""
    path = syscalls.fd_path(fd)
    status = os.fstat(fd)
    if (status.st_uid, status.st_gid) != (wanted.uid, wanted.gid):
        os.chown(path, wanted.uid, wanted.gid)
    have = _own(replicated_xattrs(fd), wanted)
    want = _own(wanted.xattrs, wanted)
    for name in have:
        if name not in want:
            syscalls.remove_xattr(fd, name)
    for name, value in want.items():
        if name != _CAPABILITY and have.get(name) != value:
            syscalls.set_xattr(fd, name, value)
    if not stat.S_ISLNK(status.st_mode) and stat.S_IMODE(os.fstat(fd).st_mode) != wanted.mode:
        os.chmod(path, wanted.mode)
    if _CAPABILITY in want and have.get(_CAPABILITY) != want[_CAPABILITY]:
        syscalls.set_xattr(fd, _CAPABILITY, want[_CAPABILITY])


def own(fd: int, wanted: Attributes) -> None:
    """Set owner and mode of an open regular file, whose xattrs are as they should be."""
    status = os.fstat(fd)
    changed = (status.st_uid, status.st_gid) != (wanted.uid, wanted.gid)
    if changed:
        os.fchown(fd, wanted.uid, wanted.gid)
    if changed or status.st_mode & 0o7777 != wanted.mode:
        os.fchmod(fd, wanted.mode)


def set_time(fd: int, mtime_ns: int) -> None:
    """Set the modification time (ns) of an O_PATH descriptor; the access time stays."""
    syscalls.utimens(fd, b"", None, mtime_ns, syscalls.AT_EMPTY_PATH)


def shows(found_ns: int, mtime_ns: int) -> bool:
    """Whether a file whose time was set to `mtime_ns` may show `found_ns`: some filesystems round to seconds, and what
    is far from the present may not fit."""
    if found_ns == mtime_ns or not 0 <= mtime_ns < _FAR:
        return True
    return found_ns % _SECOND == 0 and found_ns // _SECOND == mtime_ns // _SECOND


def _own(xattrs: Mapping[bytes, bytes], wanted: Attributes) -> dict[bytes, bytes]:
    return {
        name: value
        for name, value in xattrs.items()
        if replicated_xattr(name) and (name != _LABEL or _LABEL in wanted.xattrs)
    }

"""How a whole filesystem is listened to by fanotify, also from below a btrfs subvolume.

Takes a group's descriptor and a SourceRoot; marks the filesystem, and tells whether it still is: a mark goes when the
filesystem is unmounted.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from replicator import syscalls
from replicator.errors import EnvironmentFault
from replicator.tree.handles import SourceRoot

_ON_CHILD: Final = 0x08000000
"""FAN_EVENT_ON_CHILD: the kernel adds it to what was asked for."""


def mark(fd: int, source: SourceRoot, events: int) -> None:
    """Listen to the whole filesystem."""
    flags = syscalls.FAN_MARK_ADD | syscalls.FAN_MARK_FILESYSTEM
    try:
        syscalls.fanotify_mark(fd, flags, events, source.read_fd)
    except OSError as error:
        if error.errno != errno.EXDEV or source.fstype != "btrfs":
            raise
    else:
        return
    # Below a btrfs subvolume a mark is refused; the filesystem's own root takes one for all subvolumes.
    top = _btrfs_top(source)
    try:
        syscalls.fanotify_mark(fd, flags, events, top)
    finally:
        os.close(top)


def marked(fd: int, source: SourceRoot, events: int) -> bool:
    """Whether the group listens to just these events of this filesystem, as mounted now."""
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        marks = [dict(word.split(":") for word in line.split()[1:]) for line in lines if " sdev:" in line]
        told = [(int(one["sdev"], 16), int(one["mask"], 16) & ~_ON_CHILD) for one in marks]
        return told == [(source.kernel_dev, events)]
    except (OSError, ValueError, KeyError):
        return False


def _btrfs_top(source: SourceRoot) -> int:
    """A descriptor of the top of the source's btrfs, mounted nowhere."""
    options: dict[bytes, bytes | None] = {b"subvolid": b"5"}
    if source.mount.read_only:  # asked for without, newer kernels would make the filesystem writable
        options[b"ro"] = None
    problem: OSError | None = None
    for device in _btrfs_devices(source):
        try:
            mounted = syscalls.mount_detached(b"btrfs", device, options, syscalls.MOUNT_ATTR_RDONLY)
        except OSError as error:
            problem = problem or error
            continue
        try:
            top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mounted)
        finally:
            os.close(mounted)
        if _same_filesystem(top, source):
            return top
        os.close(top)
    if problem is None:
        problem = OSError(errno.ENODEV, os.strerror(errno.ENODEV), os.fsdecode(source.mount.source))
    raise problem


def _btrfs_devices(source: SourceRoot) -> list[bytes]:
    """Paths that may be the filesystem's devices: as mounted, and the kernel's own names of all its members."""
    devices = [source.mount.source]
    for members in Path("/sys/fs/btrfs").glob("*/devices"):
        names = [os.fsencode(member.name) for member in members.iterdir()]
        if os.path.basename(os.path.realpath(source.mount.source)) in names:
            devices += [b"/dev/" + name for name in names]
    return list(dict.fromkeys(devices))


def _same_filesystem(top: int, source: SourceRoot) -> bool:
    """The source's own inode, with the device number of its subvolume in memory, is there."""
    kind, handle, _ = syscalls.name_to_handle_at(source.read_fd, b"", syscalls.AT_EMPTY_PATH)
    try:
        fd = syscalls.open_by_handle_at(top, kind, handle, os.O_PATH)
    except OSError:
        return False
    try:
        return os.fstat(fd).st_dev == source.stat_dev
    finally:
        os.close(fd)


def refusal(source: SourceRoot, error: OSError) -> EnvironmentFault:
    """What to say and do when fanotify refuses."""
    cures = {
        errno.EPERM: "it needs CAP_SYS_ADMIN; run as root, outside of a user namespace",
        errno.ENOSYS: "this kernel has no fanotify; use one with CONFIG_FANOTIFY",
        errno.EINVAL: "it takes Linux 5.17 or later",
        errno.EMFILE: "raise fs.fanotify.max_user_groups, or stop other users of fanotify",
        errno.ENODEV: "the filesystem has no identity that fanotify can report, or its device is gone; check the mount",
    }
    cure = cures.get(error.errno or 0, "check the kernel log and that the filesystem is healthy")
    return EnvironmentFault(f"Cannot watch names on the filesystem of {source.path}: {error.strerror}; {cure}.")

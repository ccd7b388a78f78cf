"""Where names and attributes changed, from fanotify: which slots and inodes to look at again.

Takes a SourceRoot; gives looks for its whole filesystem, also for what lies outside the tree. A look never says what
happened: the kernel merges events of one process into the oldest of them, so their order and number mean nothing.

Silent here: times set by utimensat alone and truncation (told with FAN_MODIFY, as is each write then),
capabilities stripped by a write, chattr, O_TMPFILE until it is linked, and everything inside a btrfs snapshot at the
moment it is made (only its root is seen).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Self

from replicator import syscalls
from replicator.errors import EnvironmentFault
from replicator.model import FileId, Slot
from replicator.tree.handles import SourceRoot

NAME_EVENTS: Final = syscalls.FAN_CREATE | syscalls.FAN_DELETE | syscalls.FAN_RENAME
EVENTS: Final = NAME_EVENTS | syscalls.FAN_ATTRIB | syscalls.FAN_ONDIR

LARGEST_EVENT: Final = 4096
"""No event is longer (bytes): two names and three handles. A read with less room could fail."""

_METADATA: Final = struct.Struct("=IBBHQii")  # event_len, version, reserved, metadata_len, mask, fd, pid
_INFO: Final = struct.Struct("=BBH")  # type, padding, length
_HANDLE: Final = struct.Struct("=Ii")  # length, type
_HANDLE_AT: Final = _INFO.size + 8  # the fsid in between is that of the mark
_DATA_AT: Final = _HANDLE_AT + _HANDLE.size
_METADATA_VERSION: Final = 3

_TARGET, _DIRECTORY_NAME, _DIRECTORY, _OLD_NAME, _NEW_NAME = 1, 2, 3, 10, 12


class SlotLook(NamedTuple):
    """Look at what this name means now. `target` is an inode that the name meant at some time lately, if known."""

    slot: Slot
    target: FileId | None


class InodeLook(NamedTuple):
    """Look at the attributes of this inode."""

    id: FileId


class MovedLook(NamedTuple):
    """Look at every name that this inode is known to have: it has another now."""

    id: FileId


class ListLook(NamedTuple):
    """Look at every name in this directory."""

    id: FileId


class Overflow(NamedTuple):
    """The kernel dropped events, or sent what cannot be read: look at every directory."""


Look = SlotLook | InodeLook | MovedLook | ListLook | Overflow


class Batch(NamedTuple):
    """What some bytes from the kernel said."""

    looks: list[Look]
    """Each once, in the order of first mention."""
    events: int


def parse(data: bytes, id_of_handle: Callable[[int, bytes], FileId]) -> Batch:
    """Read whole fanotify events. What cannot be understood becomes an Overflow; unknown additions are skipped.

    `id_of_handle` makes identities of (type, handle), or raises ValueError.
    """
    looks: dict[Look, None] = {}
    ids: dict[bytes, FileId] = {}  # by the handle's bytes with its header: the same directories come again and again
    unpack_metadata, unpack_info, unpack_handle = _METADATA.unpack_from, _INFO.unpack_from, _HANDLE.unpack_from
    events, at, total = 0, 0, len(data)
    while at < total:
        try:
            event_length, version, _, metadata_length, mask, _, _ = unpack_metadata(data, at)
            end = at + event_length
            info = at + metadata_length
            if version != _METADATA_VERSION or info < at + _METADATA.size or not info <= end <= total:
                raise ValueError("not a fanotify event")
        except (struct.error, ValueError):
            # Where the next event starts is unknown, so all that follows is lost with this one.
            looks[Overflow()] = None
            events += 1
            break
        events += 1
        at = end
        target: FileId | None = None
        slots: list[Slot] = []
        directory: FileId | None = None
        try:
            while info < end:
                kind, _, length = unpack_info(data, info)
                next_info = info + length
                if length < _INFO.size or next_info > end:
                    raise ValueError("a cut fanotify record")
                if kind in (_TARGET, _DIRECTORY_NAME, _DIRECTORY, _OLD_NAME, _NEW_NAME):
                    handle_length, handle_type = unpack_handle(data, info + _HANDLE_AT)
                    data_end = info + _DATA_AT + handle_length
                    if data_end > next_info:
                        raise ValueError("a cut file handle")
                    key = data[info + _HANDLE_AT : data_end]
                    id = ids.get(key)
                    if id is None:
                        id = ids[key] = id_of_handle(handle_type, key[_HANDLE.size :])
                    if kind == _TARGET:
                        target = id
                    elif kind == _DIRECTORY:
                        directory = id
                    else:
                        name = data[data_end : data.index(0, data_end, next_info)]
                        if name in (b".", b""):  # the directory itself
                            directory = id
                        else:
                            slots.append(Slot(id, name))
                info = next_info
        except (struct.error, ValueError):
            looks[Overflow()] = None
        if mask & syscalls.FAN_Q_OVERFLOW:
            looks[Overflow()] = None
            continue
        if mask & NAME_EVENTS:
            if not slots:
                looks[Overflow()] = None
            for slot in slots:
                looks[SlotLook(slot, target)] = None
                looks[InodeLook(slot.parent)] = None
        if target is not None:
            looks[InodeLook(target)] = None
        elif directory is not None:
            looks[InodeLook(directory)] = None
        elif not mask & NAME_EVENTS:
            looks[Overflow()] = None  # attributes of nobody
    return Batch(list(looks), events)


class Names:
    """The queue of name and attribute events of the source's filesystem, from construction until `close`."""

    def __init__(self, source: SourceRoot, *, modify: bool = False) -> None:
        """Start listening. EnvironmentFault, with cause and cure, where fanotify cannot.

        `modify` asks for FAN_MODIFY as well: it costs each write about a microsecond, and tells of modification times
        and truncations where no hook does.
        """
        self._id_of_handle = source.id_of_handle
        try:
            self._fd = syscalls.fanotify_init(
                syscalls.FAN_CLASS_NOTIF
                | syscalls.FAN_REPORT_DFID_NAME_TARGET
                | syscalls.FAN_NONBLOCK
                | syscalls.FAN_CLOEXEC
            )
        except OSError as error:
            raise _fault(source, error) from error
        try:
            _mark(self._fd, source, EVENTS | syscalls.FAN_MODIFY if modify else EVENTS)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise _fault(source, error) from error
            raise

    def fileno(self) -> int:
        """For a selector: readable while events wait."""
        return self._fd

    def queued(self) -> int:
        """Events (not bytes) that wait now."""
        # The kernel counts bytes as if events were nothing but their metadata.
        return syscalls.fionread(self._fd) // _METADATA.size

    def read(self, limit: int = 256 * 1024) -> list[Look]:
        """Looks of the next events, of at most `limit` (at least LARGEST_EVENT) bytes; empty when none wait."""
        return self._read(limit).looks

    def drain_queued(self) -> list[Look]:
        """Looks of at least all events that waited at the call, however many come meanwhile."""
        owed = self.queued()
        looks: dict[Look, None] = {}
        while owed > 0:
            batch = self._read(256 * 1024)
            if batch.events == 0:
                break
            owed -= batch.events
            looks.update(dict.fromkeys(batch.looks))
        return list(looks)

    def close(self) -> None:
        """Stop listening and forget what is queued. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, limit: int) -> Batch:
        try:
            data = os.read(self._fd, max(limit, LARGEST_EVENT))
        except BlockingIOError:
            return Batch([], 0)
        return parse(data, self._id_of_handle)


def _mark(fd: int, source: SourceRoot, events: int) -> None:
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


def _fault(source: SourceRoot, error: OSError) -> EnvironmentFault:
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

"""System calls that Python's `os` does not have, as plain typed functions.

Takes descriptors, raw byte names and numbers; gives descriptors, numbers or small tuples. Every failure is an OSError
with errno and, where there is one, the path. Nothing is retried and nothing is kept between calls, so all of it may be
called from several threads; the interpreter lock is released meanwhile. Constants are the kernel's.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import termios
from ctypes import c_char_p, c_int, c_int64, c_long, c_size_t, c_uint, c_uint64, c_ulong, c_void_p
from typing import Any, Final, NamedTuple, NoReturn

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_SYMLINK_FOLLOW: Final = 0x400
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800
STATX_MNT_ID: Final = 0x1000
STATX_ATTR_DAX: Final = 0x200000

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_COLLAPSE_RANGE: Final = 0x08
FALLOC_FL_ZERO_RANGE: Final = 0x10
FALLOC_FL_INSERT_RANGE: Final = 0x20

SYNC_FILE_RANGE_WAIT_BEFORE: Final = 1
SYNC_FILE_RANGE_WRITE: Final = 2
SYNC_FILE_RANGE_WAIT_AFTER: Final = 4

MEMBARRIER_CMD_QUERY: Final = 0
MEMBARRIER_CMD_GLOBAL: Final = 1

FICLONE: Final = 0x40049409
FICLONERANGE: Final = 0x4020940D

FAN_MODIFY: Final = 0x00000002
FAN_ATTRIB: Final = 0x00000004
FAN_CREATE: Final = 0x00000100
FAN_DELETE: Final = 0x00000200
FAN_Q_OVERFLOW: Final = 0x00004000
FAN_RENAME: Final = 0x10000000
FAN_ONDIR: Final = 0x40000000
FAN_CLOEXEC: Final = 0x01
FAN_NONBLOCK: Final = 0x02
FAN_CLASS_NOTIF: Final = 0x00
FAN_REPORT_DFID_NAME_TARGET: Final = 0x1000 | 0x0200 | 0x0400 | 0x0800  # target id | id | directory's id | name
FAN_MARK_ADD: Final = 0x01
FAN_MARK_FILESYSTEM: Final = 0x100

FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6
OPEN_TREE_CLONE: Final = 1
MOUNT_ATTR_RDONLY: Final = 0x01
MOUNT_ATTR_NODEV: Final = 0x04
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR__ATIME: Final = 0x70
MS_PRIVATE: Final = 1 << 18
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8

UTIME_OMIT: Final = (1 << 30) - 2

MAX_HANDLE_BYTES: Final = 128

_libc = ctypes.CDLL(None, use_errno=True)


def _function(name: str, *argtypes: Any) -> Any:
    """A libc function with its own argument types, so that every call is checked and converted in C."""
    function = _libc[name]
    function.argtypes = argtypes
    function.restype = c_int
    return function


def _function_at(name: str, *argtypes: Any) -> Any:
    """The same, for strings that are given by their addresses; apart from what `_function` makes of that name."""
    return ctypes.CFUNCTYPE(c_int, *argtypes, use_errno=True)((name, _libc))


# Numbers from asm-generic/unistd.h: every architecture has given new calls the same number since Linux 5.1.
_NR_OPEN_TREE, _NR_FSOPEN, _NR_FSCONFIG, _NR_FSMOUNT, _NR_OPENAT2, _NR_MOUNT_SETATTR = 428, 430, 431, 432, 437, 442
_NR_MEMBARRIER = {"x86_64": 324, "aarch64": 283, "riscv64": 283}.get(os.uname().machine, 283)


def _syscall(*argtypes: Any) -> Any:
    """`syscall(2)` for a call without a libc wrapper; the first argument is its number."""
    function = _libc["syscall"]
    function.argtypes = (c_long, *argtypes)
    function.restype = c_long
    return function


def _fail(path: bytes | str | None = None) -> NoReturn:
    number = ctypes.get_errno()
    if path:
        raise OSError(number, os.strerror(number), os.fsdecode(path))
    raise OSError(number, os.strerror(number))


_name_to_handle_at = _function("name_to_handle_at", c_int, c_char_p, c_void_p, c_void_p, c_int)
_open_by_handle_at = _function("open_by_handle_at", c_int, c_char_p, c_int)
_renameat2 = _function("renameat2", c_int, c_char_p, c_int, c_char_p, c_uint)
_linkat = _function("linkat", c_int, c_char_p, c_int, c_char_p, c_int)
_fallocate = _function("fallocate", c_int, c_int, c_int64, c_int64)
_sync_file_range = _function("sync_file_range", c_int, c_int64, c_int64, c_uint)
_syncfs = _function("syncfs", c_int)
_getdents = _function("getdents64", c_int, c_void_p, c_size_t)
_ioctl = _function("ioctl", c_int, c_ulong, c_void_p)
_statx = _function("statx", c_int, c_char_p, c_int, c_uint, c_void_p)
_handle_at = _function_at("name_to_handle_at", c_int, c_void_p, c_void_p, c_void_p, c_int)
_statx_at = _function_at("statx", c_int, c_void_p, c_int, c_uint, c_void_p)
_utimensat = _function("utimensat", c_int, c_char_p, c_char_p, c_int)
_fanotify_init = _function("fanotify_init", c_uint, c_uint)
_fanotify_mark = _function("fanotify_mark", c_int, c_uint, c_uint64, c_int, c_char_p)
_mlock = _function("mlock", c_void_p, c_size_t)
_mount = _function("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_membarrier = _syscall(c_int, c_uint, c_int)
_openat2 = _syscall(c_int, c_char_p, c_char_p, c_size_t)
_open_tree = _syscall(c_int, c_char_p, c_uint)
_mount_setattr = _syscall(c_int, c_char_p, c_uint, c_char_p, c_size_t)
_fsopen = _syscall(c_char_p, c_uint)
_fsconfig = _syscall(c_int, c_uint, c_char_p, c_char_p, c_int)
_fsmount = _syscall(c_int, c_uint, c_uint)

_LOOK_FLAGS = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT

_HANDLE_HEAD = struct.Struct("=Ii")  # handle_bytes, handle_type
_MOUNT_AT = _HANDLE_HEAD.size + MAX_HANDLE_BYTES
_HandleBuffer = ctypes.c_char * (_MOUNT_AT + 4)  # struct file_handle, then the int for the mount id
_EMPTY_HANDLE = struct.pack("=I", MAX_HANDLE_BYTES)
_MOUNT_ID = struct.Struct("=i")


def name_to_handle_at(dirfd: int, name: bytes, flags: int = 0) -> tuple[int, bytes, int]:
    """(handle type, handle, mount id) of `name` in `dirfd`; of `dirfd` itself with b"" and AT_EMPTY_PATH.

    Symbolic links are not followed. EOPNOTSUPP where the filesystem has no handles.
    """
    buffer = _HandleBuffer()
    buffer.value = _EMPTY_HANDLE
    address = ctypes.addressof(buffer)
    if _name_to_handle_at(dirfd, name, address, address + _MOUNT_AT, flags) < 0:
        _fail(name)
    raw = buffer.raw
    length, kind = _HANDLE_HEAD.unpack_from(raw)
    return kind, raw[8 : 8 + length], _MOUNT_ID.unpack_from(raw, _MOUNT_AT)[0]


def open_by_handle_at(mount_fd: int, kind: int, handle: bytes, flags: int) -> int:
    """A descriptor of the inode behind a handle, on the mount that `mount_fd` (not O_PATH) lies on; close-on-exec.

    ESTALE when there is no such inode, but also when the filesystem failed to read it: the kernel does not tell.
    """
    fd: int = _open_by_handle_at(mount_fd, _HANDLE_HEAD.pack(len(handle), kind) + handle, flags | os.O_CLOEXEC)
    if fd < 0:
        _fail()
    return fd


def openat2(dirfd: int, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """`openat` with RESOLVE_*. Always close-on-exec. `mode` must be 0 unless a file may be created."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    fd: int = _openat2(_NR_OPENAT2, dirfd, path, how, len(how))
    if fd < 0:
        _fail(path)
    return fd


class Statx(NamedTuple):
    """What `statx` says besides what `os.stat` does. `mask` tells which fields are filled in."""

    mask: int
    attributes: int
    mode: int
    nlink: int
    ino: int
    size: int
    btime_ns: int
    mount_id: int


def statx(dirfd: int, path: bytes, flags: int = AT_SYMLINK_NOFOLLOW, mask: int = STATX_BASIC_STATS) -> Statx:
    """`mask` is STATX_*; what the filesystem does not have is missing from the answer's `mask`."""
    buffer = ctypes.create_string_buffer(256)
    if _statx(dirfd, path, flags, mask, buffer) < 0:
        _fail(path)
    raw = buffer.raw
    got, _, attributes, nlink, _, _, mode, ino, size = struct.unpack_from("=IIQIIIH2xQQ", raw)
    seconds, nanoseconds = struct.unpack_from("=qI", raw, 80)
    (mount_id,) = struct.unpack_from("=Q", raw, 144)
    return Statx(got, attributes, mode, nlink, ino, size, seconds * 10**9 + nanoseconds, mount_id)


def renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int = 0) -> None:
    """`renameat` with RENAME_NOREPLACE (EEXIST if `new` is there) or RENAME_EXCHANGE (both must be there)."""
    if _renameat2(old_dir, old, new_dir, new, flags) < 0:
        _fail(new if ctypes.get_errno() == errno.EEXIST else old)


def linkat(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int = 0) -> None:
    """One more name for `old`; a symbolic link gets the name itself unless AT_SYMLINK_FOLLOW."""
    if _linkat(old_dir, old, new_dir, new, flags) < 0:
        _fail(new)


def link_fd(fd: int, new_dir: int, new: bytes) -> None:
    """A name for the inode of `fd` (O_PATH will do). ENOENT if its last name is gone, unless it was O_TMPFILE."""
    linkat(fd, b"", new_dir, new, AT_EMPTY_PATH)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """`mode` is FALLOC_FL_*; EOPNOTSUPP where the filesystem has none of that."""
    if _fallocate(fd, mode, offset, length) < 0:
        _fail()


def sync_file_range(fd: int, offset: int, length: int, flags: int) -> None:
    """Start, or wait for, the writing back of a range; length 0 is "to the end". Makes nothing durable by itself."""
    if _sync_file_range(fd, offset, length, flags) < 0:
        _fail()


def syncfs(fd: int) -> None:
    """Write back the whole filesystem of `fd` and wait. A write-back error since the last call is raised once."""
    if _syncfs(fd) < 0:
        _fail()


def membarrier(command: int = MEMBARRIER_CMD_GLOBAL) -> int:
    """0, or for MEMBARRIER_CMD_QUERY the commands that the kernel has."""
    result: int = _membarrier(_NR_MEMBARRIER, command, 0, 0)
    if result < 0:
        _fail()
    return result


def mlock(address: int, length: int) -> None:
    """Keep pages of this process in memory. EPERM or ENOMEM beyond the limit on locked memory."""
    if _mlock(address, length) < 0:
        _fail()


_TIMES = struct.Struct("=qqqq")


def utimens(dirfd: int, path: bytes, atime_ns: int | None, mtime_ns: int | None, flags: int = 0) -> None:
    """Set times; None leaves one as it is. With b"" and AT_EMPTY_PATH those of `dirfd`, which may be O_PATH."""
    access = (0, UTIME_OMIT) if atime_ns is None else divmod(atime_ns, 10**9)
    change = (0, UTIME_OMIT) if mtime_ns is None else divmod(mtime_ns, 10**9)
    if _utimensat(dirfd, path, _TIMES.pack(*access, *change), flags) < 0:
        _fail(path)


def fanotify_init(flags: int, event_flags: int = os.O_RDONLY | os.O_CLOEXEC) -> int:
    """A fanotify descriptor. EPERM without CAP_SYS_ADMIN, EINVAL for flags that the kernel does not know."""
    fd: int = _fanotify_init(flags, event_flags)
    if fd < 0:
        _fail()
    return fd


def fanotify_mark(fd: int, flags: int, mask: int, dirfd: int, path: bytes | None = None) -> None:
    """Mark `dirfd` itself when `path` is None."""
    if _fanotify_mark(fd, flags, mask, dirfd, path) < 0:
        _fail(path)


def open_tree(dirfd: int, path: bytes, flags: int) -> int:
    """A descriptor of a place, or with OPEN_TREE_CLONE of a detached copy of its mount. Always close-on-exec."""
    fd: int = _open_tree(_NR_OPEN_TREE, dirfd, path, flags | os.O_CLOEXEC)
    if fd < 0:
        _fail(path)
    return fd


def mount_setattr(fd: int, attributes: int, propagation: int = 0) -> None:
    """Set MOUNT_ATTR_*, and if not 0 the propagation (MS_PRIVATE), of the mount whose root `fd` is."""
    clear = MOUNT_ATTR__ATIME if attributes & MOUNT_ATTR__ATIME else 0  # how access times are kept is one choice of few
    packed = struct.pack("=QQQQ", attributes, clear, propagation, 0)
    if _mount_setattr(_NR_MOUNT_SETATTR, fd, b"", AT_EMPTY_PATH, packed, len(packed)) < 0:
        _fail()


def mount(source: bytes, target: bytes, fstype: bytes, flags: int, options: bytes) -> None:
    """Mount a filesystem where everybody sees it."""
    if _mount(source, target, fstype, flags, options) < 0:
        _fail(target)


def mount_detached(fstype: bytes, source: bytes, options: dict[bytes, bytes | None], attributes: int = 0) -> int:
    """Mount a filesystem nowhere: a descriptor of its root, in no namespace; the mount ends with the descriptor.

    An option whose value is None is a flag. `attributes` are MOUNT_ATTR_*.
    """
    context: int = _fsopen(_NR_FSOPEN, fstype, 1)  # FSOPEN_CLOEXEC
    if context < 0:
        _fail(fstype)
    try:
        for key, value in {b"source": source, **options}.items():
            command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
            if _fsconfig(_NR_FSCONFIG, context, command, key, value, 0) < 0:
                _fail(source)
        if _fsconfig(_NR_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0) < 0:
            _fail(source)
        fd: int = _fsmount(_NR_FSMOUNT, context, 1, attributes)  # FSMOUNT_CLOEXEC
        if fd < 0:
            _fail(source)
        return fd
    finally:
        os.close(context)


def ficlone(target: int, source: int) -> None:
    """Make all of `target` share the blocks of `source`. EOPNOTSUPP or EXDEV where that cannot be."""
    fcntl.ioctl(target, FICLONE, source)


def ficlonerange(target: int, target_offset: int, source: int, offset: int, length: int) -> None:
    """Share a block-aligned range; length 0 is "to the end of the source"."""
    fcntl.ioctl(target, FICLONERANGE, struct.pack("=qQQQ", source, offset, length, target_offset))


def getdents(fd: int, address: int, size: int) -> int:
    """Write the next entries of a directory (struct linux_dirent64) to `address`; how many bytes, 0 at the end.

    ENOENT when the directory itself was removed.
    """
    got: int = _getdents(fd, address, size)
    if got < 0:
        _fail()
    return got


def look_at(dirfd: int, names: list[int], handles: int, handle_step: int, statuses: int, status_step: int) -> list[int]:
    """name_to_handle_at and statx of many names, given by their addresses, into arrays at addresses.

    The steps are the arrays' bytes for each name; the capacity of each handle is set already, links are not followed.
    Which names, as indexes, could not be looked at: ask for each by itself.
    """
    failed = []
    mount_id = ctypes.c_int()
    mount_at, handle_at, status = ctypes.addressof(mount_id), _handle_at, _statx_at
    for number, name in enumerate(names):
        if handle_at(dirfd, name, handles, mount_at, 0) or status(
            dirfd, name, _LOOK_FLAGS, STATX_BASIC_STATS, statuses
        ):
            failed.append(number)
        handles += handle_step
        statuses += status_step
    return failed


def ioctl_at(fd: int, request: int, address: int) -> None:
    """An ioctl that writes into a large buffer at `address`: fcntl.ioctl keeps the interpreter's lock during these."""
    if _ioctl(fd, request, address) < 0:
        _fail()


def fionread(fd: int) -> int:
    """What FIONREAD says of `fd`: for most descriptors the bytes that can be read now."""
    (count,) = struct.unpack("=i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))
    return int(count)


def fd_path(fd: int) -> str:
    """A path to the very inode of `fd`, for calls that refuse O_PATH descriptors; follow links when using it.

    An O_PATH descriptor of a symbolic link stands for the link itself there.
    """
    return f"/proc/self/fd/{fd}"


def get_xattrs(fd: int) -> dict[bytes, bytes]:
    """All extended attributes of `fd` (O_PATH will do, of any kind of inode); empty where there are none to have."""
    path = fd_path(fd)
    found: dict[bytes, bytes] = {}
    try:
        names = os.listxattr(path)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return found
        raise
    for name in names:
        try:
            found[os.fsencode(name)] = os.getxattr(path, name)
        except OSError as error:
            if error.errno != errno.ENODATA:  # removed since it was listed
                raise
    return found


def set_xattr(fd: int, name: bytes, value: bytes) -> None:
    """Set one extended attribute of `fd` (O_PATH will do)."""
    os.setxattr(fd_path(fd), name, value)


def remove_xattr(fd: int, name: bytes) -> None:
    """Remove one extended attribute of `fd` (O_PATH will do). ENODATA if it is not there."""
    os.removexattr(fd_path(fd), name)

"""The source directory: which filesystem it is on, and its inodes by identity instead of by path.

Takes the path of a directory; gives FileIds made of the kernel's file handles, and descriptors made of FileIds. The
tree is seen through a detached, private, read-only copy of its mount: nothing that is mounted on directories inside
shows (their own, covered content does), no access time changes, nothing in here can write to the source, and the
original can still be unmounted (`still_there` tells; the filesystem itself stays busy until `close`).

Does not promise that an opened inode has a name in the tree: handles lead anywhere on the filesystem. From a directory
outside of the tree ".." is ENOENT, and its /proc link reads "/" as the root's own does: ids tell, paths do not.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import Final, Self

from replicator import syscalls
from replicator.errors import EnvironmentFault
from replicator.model import FileId
from replicator.tree.handle_form import FORMS
from replicator.tree.mount import Mount, mount_of

_TRIES: Final = 10
_READ: Final = os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK | os.O_NOCTTY
_PATH: Final = os.O_PATH | os.O_NOFOLLOW
_BTRFS_EMPTY: Final = 2  # BTRFS_EMPTY_SUBVOL_DIR_OBJECTID


class Stale(Exception):
    """There is no such inode (any more).

    The kernel says the same when it failed to read the inode from a sick disk, and on tmpfs for an inode whose id was
    never asked for or told before: a name that still leads to this id disproves it.
    """

    def __init__(self, id: FileId) -> None:
        super().__init__(f"no inode {id.text()}")
        self.id = id


class SourceRoot:
    """An opened source directory. Closing it, or leaving its `with` block, gives the filesystem free.

    Apart from `open` and `close` everything may be called from several threads.
    """

    path: str
    """Absolute, as it was given."""
    fd: int
    """O_PATH descriptor of the directory."""
    read_fd: int
    """O_RDONLY descriptor of the directory, for listing, syncfs and ioctl."""
    fstype: str
    """"ext4", "xfs", "btrfs" or "tmpfs"."""
    mount: Mount
    """What the path lay on when it was opened."""
    kernel_dev: int
    """The superblock's device as the kernel numbers it (s_dev): major << 20 | minor."""
    dax: bool
    """Stores through mappings do not pass the page cache, so that no hook sees them."""
    stat_dev: int
    """What `stat` says of the directory's device (of its subvolume on btrfs)."""
    mount_id: int
    """Of the detached mount that all descriptors lie on."""
    id: FileId

    def __init__(self, path: str, fd: int, read_fd: int, mount: Mount) -> None:
        self.path = path
        self.fd = fd
        self.read_fd = read_fd
        self.fstype = mount.fstype
        self.mount = mount
        self.kernel_dev = mount.kernel_dev
        root = syscalls.statx(fd, b"", syscalls.AT_EMPTY_PATH)
        self.dax = mount.dax or bool(root.attributes & syscalls.STATX_ATTR_DAX)
        self.stat_dev = os.fstat(fd).st_dev
        self._parse, self._build = FORMS[mount.fstype]
        # A handle with generation 0 fits every generation there (mke2fs makes inodes of generation 0).
        self._zero_is_any = mount.fstype in ("ext4", "btrfs")
        kind, handle, self.mount_id = syscalls.name_to_handle_at(fd, b"", syscalls.AT_EMPTY_PATH)
        self.id = self._parse(kind, handle)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a source directory. EnvironmentFault, with cause and cure, if it cannot be one."""
        absolute = os.path.abspath(path)
        try:
            there = os.open(absolute, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise EnvironmentFault(
                f"Cannot replicate {absolute}: it does not exist; check the path and that its filesystem is mounted."
            ) from None
        except NotADirectoryError:
            raise EnvironmentFault(
                f"Cannot replicate {absolute}: it is not a directory; name the directory that holds the files."
            ) from None
        except OSError as error:
            raise EnvironmentFault(
                f"Cannot open {absolute}: {error.strerror}; run as root and check that its filesystem is healthy."
            ) from error
        try:
            mount = _supported(absolute, there)
            fd = _detach(absolute, there)
        finally:
            os.close(there)
        read_fd = -1
        try:
            read_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            source = cls(absolute, fd, read_fd, mount)
            source._calibrate()
        except BaseException as error:
            for one in (fd, read_fd):
                if one >= 0:
                    os.close(one)
            if isinstance(error, ValueError):
                raise _unknown_form(absolute, mount.fstype) from error
            if isinstance(error, OSError):
                raise EnvironmentFault(
                    f"Cannot read {absolute}: {error.strerror}; run as root and check that its filesystem is healthy."
                ) from error
            raise
        return source

    def _calibrate(self) -> None:
        """Prove that handles can be taken apart and put together here: on the root and on one inode below it."""
        self._prove(self.id)
        with os.scandir(self.read_fd) as entries:
            for entry in entries:
                try:
                    self._prove(self.id_at(self.fd, os.fsencode(entry.name))[0])
                except (OSError, Stale):
                    continue  # removed meanwhile, or damaged: that is for those who need it
                return

    def _prove(self, id: FileId) -> None:
        try:
            fd = self.open_by_id(id)
        except PermissionError:
            raise EnvironmentFault(
                f"Cannot open files of {self.path} by handle: that needs CAP_DAC_READ_SEARCH; run as root."
            ) from None
        except Stale:
            if id != self.id:
                raise
            found = None
        else:
            try:
                found = self.id_of(fd)
            finally:
                os.close(fd)
        if found != id:
            raise _unknown_form(self.path, self.fstype)

    def close(self) -> None:
        """Give the filesystem free. May be called twice."""
        for fd in (self.read_fd, self.fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.read_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def still_there(self) -> bool:
        """The path still leads to this directory: not unmounted, mounted over, replaced, renamed or unreadable."""
        try:
            fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            # The device cannot be another's: the filesystem stays alive while this object does.
            return os.fstat(fd).st_dev == self.stat_dev and self.id_of(fd) == self.id and os.fstat(fd).st_nlink > 0
        except (OSError, ValueError):
            return False
        finally:
            os.close(fd)

    def id_at(self, dirfd: int, name: bytes) -> tuple[FileId, bool]:
        """Which inode a name in a directory means, and whether it is on the source's mount.

        Links are not followed, nothing is opened. The second is true in every directory that was opened through this
        object, since no other mount can be reached from there. FileNotFoundError when there is no such name, also where
        a btrfs snapshot shows an empty, unwritable place in the stead of a subvolume that it does not contain.
        """
        kind, handle, mount_id = syscalls.name_to_handle_at(dirfd, name)
        id = self._parse(kind, handle)
        if id.ino == _BTRFS_EMPTY and id.root:  # all of a snapshot's share this number and cannot be opened by it
            raise FileNotFoundError(errno.ENOENT, "No inode of its own", os.fsdecode(name))
        return id, mount_id == self.mount_id

    def id_of(self, fd: int) -> FileId:
        """Which inode a descriptor (O_PATH will do) of this filesystem is."""
        kind, handle, _ = syscalls.name_to_handle_at(fd, b"", syscalls.AT_EMPTY_PATH)
        return self._parse(kind, handle)

    def id_of_handle(self, kind: int, handle: bytes) -> FileId:
        """The identity in a file handle of this filesystem. ValueError if it is of another form."""
        return self._parse(kind, handle)

    def open_by_id(self, id: FileId, flags: int = _PATH) -> int:
        """A close-on-exec descriptor of an inode, also of one without any name that is still open somewhere.

        Stale if there is none. Opening a fifo or a device otherwise than O_PATH has effects: see `open_to_read`.
        """
        try:
            kind, handle = self._build(id)
        except struct.error:
            raise Stale(id) from None  # numbers that no inode of this filesystem can have
        fd = self._open_by_handle(id, kind, handle, flags)
        if id.gen == 0 and self._zero_is_any:
            try:
                same = self.id_of(fd) == id
            except BaseException:
                os.close(fd)
                raise
            if not same:
                os.close(fd)
                raise Stale(id)
        return fd

    def _open_by_handle(self, id: FileId, kind: int, handle: bytes, flags: int) -> int:
        for last in (False,) * (_TRIES - 1) + (True,):
            try:
                return syscalls.open_by_handle_at(self.read_fd, kind, handle, flags)
            except OSError as error:
                if error.errno == errno.ESTALE:
                    raise Stale(id) from None
                # Also what the kernel says, for a moment, of an inode that is being removed.
                if error.errno != errno.ENOMEM or last:
                    raise
        raise Stale(id)

    def open_to_read(self, id: FileId, *, regular: bool = False) -> int:
        """A readable descriptor of a regular file or directory; of anything else, which is never opened, O_PATH.

        `regular`: that it is a regular file was seen before, and is so for as long as there is an inode of this id.
        Does not change the access time and does not wait for a lease's holder (BlockingIOError). Stale if there is
        none.
        """
        if regular:
            return self.open_by_id(id, _READ)
        fd = self.open_by_id(id)
        try:
            mode = os.fstat(fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                return fd
            readable = self.open_by_id(id, _READ)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return readable


def _unknown_form(path: str, fstype: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"Cannot replicate {path}: this kernel's {fstype} has file handles of an unknown form; use a kernel and"
        " filesystem of the tested ones (see rsyncfs doctor)."
    )


def _supported(path: str, fd: int) -> Mount:
    """The mount that `fd` lies on, if rsyncfs can replicate from it."""
    try:
        _, _, mount_id = syscalls.name_to_handle_at(fd, b"", syscalls.AT_EMPTY_PATH)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EOVERFLOW):
            raise EnvironmentFault(
                f"Cannot take a file handle of {path}: {error.strerror}; check that its filesystem is healthy."
            ) from error
        mount_id = syscalls.statx(fd, b"", syscalls.AT_EMPTY_PATH, syscalls.STATX_MNT_ID).mount_id
        kind = f"{_fstype(mount_id)}, which has no file handles"
    else:
        kind = _fstype(mount_id)
        if kind in FORMS:
            return mount_of(mount_id)
    raise EnvironmentFault(
        f"Cannot replicate {path}: it is on {kind}; use a directory on ext4, XFS, btrfs or tmpfs"
        " (of an overlay, replicate the upper directory)."
    )


def _fstype(mount_id: int) -> str:
    try:
        return mount_of(mount_id).fstype
    except (KeyError, OSError, ValueError):
        return "a mount that /proc/self/mountinfo does not show"


def _detach(path: str, fd: int) -> int:
    """A private, read-only copy of the mount that `fd` lies on, from that directory down."""
    try:
        root = syscalls.open_tree(fd, b"", syscalls.AT_EMPTY_PATH | syscalls.OPEN_TREE_CLONE)
        try:
            syscalls.mount_setattr(root, syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOATIME, syscalls.MS_PRIVATE)
        except BaseException:
            os.close(root)
            raise
        return root
    except PermissionError:
        raise EnvironmentFault(
            f"Cannot open a private view of {path}: that needs CAP_SYS_ADMIN; run as root."
        ) from None
    except OSError as error:
        raise EnvironmentFault(
            f"Cannot open a private view of {path}: {error.strerror}; it takes Linux 5.12 or later and a mount that"
            " can be bound elsewhere (mount --make-private)."
        ) from error

"""The replica's directory tree as the kernel has it, reached only beneath one root descriptor.

Takes places and ids, gives descriptors and file handles. A directory is opened one component below its parent's
descriptor, without following links or leaving the mount, and is what it is taken for only if its handle is the one in
the inventory. A descriptor stays valid when its directory moves, so they are kept by id, the least used closed first.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict

from replicator import syscalls
from replicator.mirror.inventory import Inventory
from replicator.mirror.steps import LIMBO
from replicator.model import FileId, Slot
from replicator.tree.mount import mount_of

_BENEATH = (
    syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_MAGICLINKS
)
_KEPT = 512


class AstrayError(Exception):
    """A known inode is not where the inventory has it: somebody else changed the replica."""

    def __init__(self, id: FileId, place: Slot | None) -> None:
        super().__init__(f"{id.text()} is not where it was")
        self.id = id
        self.place = place


def open_beneath(dirfd: int, name: bytes, flags: int, mode: int = 0) -> int:
    """Open one name in a directory; never a link's target, never another mount."""
    return syscalls.openat2(dirfd, name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, _BENEATH)


def handle_of(dirfd: int, name: bytes) -> bytes | None:
    """The file handle of what a directory has under `name` (b"": of `dirfd` itself); None if there is nothing."""
    try:
        kind, handle, _ = syscalls.name_to_handle_at(dirfd, name, 0 if name else syscalls.AT_EMPTY_PATH)
    except FileNotFoundError:
        return None
    return kind.to_bytes(4, "little", signed=True) + handle


def open_handle(fd: int, handle: bytes, flags: int) -> int:
    """Open the inode of a handle that `handle_of` gave; `fd` is on its filesystem. OSError: ESTALE if it is gone."""
    return syscalls.open_by_handle_at(fd, int.from_bytes(handle[:4], "little", signed=True), handle[4:], flags)


class Ground:
    """One replica root, whose descriptor it owns; `limbo_fd` is set by Limbo while limbo exists.

    Raises OSError and AstrayError.
    """

    def __init__(self, root_fd: int, inventory: Inventory) -> None:
        self.root_fd = root_fd
        self.fstype = mount_of(syscalls.name_to_handle_at(root_fd, b"", syscalls.AT_EMPTY_PATH)[2]).fstype
        self.limbo_fd: int | None = None
        self._inventory = inventory
        self._kept: OrderedDict[FileId, int] = OrderedDict()

    def directory(self, id: FileId) -> int:
        """A descriptor (O_PATH) of a known directory, or of limbo. Borrowed: not to be closed, valid for one step."""
        if id == LIMBO:
            if self.limbo_fd is None:
                raise AstrayError(id, None)
            return self.limbo_fd
        if id == self._inventory.root:
            return self.root_fd
        fd = self._kept.get(id)
        if fd is not None:
            self._kept.move_to_end(id)
            return fd
        chain: dict[FileId, Slot] = {}
        at = id
        while at not in self._kept and at not in (LIMBO, self._inventory.root):
            place = next(iter(self._inventory.places(at)), None)
            if place is None or at in chain:
                raise AstrayError(at, None)
            chain[at] = place
            at = place.parent
        fd = self.directory(at)
        for child, place in reversed(chain.items()):
            fd = self._enter(fd, child, place)
        return fd

    def root_handle(self) -> bytes:
        """The file handle of the root directory."""
        handle = handle_of(self.root_fd, b"")
        assert handle is not None
        return handle

    def at(self, place: Slot) -> bytes | None:
        """The file handle of what is really there; None if nothing is."""
        return handle_of(self.directory(place.parent), place.name)

    def holds(self, place: Slot, id: FileId) -> bool:
        """Whether this place really is that inode."""
        return self.at(place) == self._inventory.handle(id)

    def open(self, id: FileId, flags: int) -> int:
        """Open a known inode by one of its names. AstrayError if none of them leads to it."""
        if id == self._inventory.root:
            return os.open(b".", flags | os.O_CLOEXEC | os.O_DIRECTORY, dir_fd=self.root_fd)
        handle = self._inventory.handle(id)
        if not flags & os.O_PATH:
            flags |= os.O_NONBLOCK  # never wait for the other end of a fifo that somebody put there
        for place in self._inventory.places(id):
            try:
                fd = open_beneath(self.directory(place.parent), place.name, flags)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR):
                    continue
                raise
            if handle_of(fd, b"") == handle:
                return fd
            os.close(fd)
        raise AstrayError(id, next(iter(self._inventory.places(id)), None))

    def let_go(self, id: FileId) -> None:
        """A directory is gone: its descriptor must not keep it."""
        fd = self._kept.pop(id, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close every descriptor, the root's too."""
        self.let_go_all()
        os.close(self.root_fd)

    def let_go_all(self) -> None:
        """Close the kept descriptors."""
        while self._kept:
            os.close(self._kept.popitem()[1])

    def _enter(self, parent_fd: int, id: FileId, place: Slot) -> int:
        try:
            fd = open_beneath(parent_fd, place.name, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                raise AstrayError(id, place) from error
            raise
        if handle_of(fd, b"") != self._inventory.handle(id):
            os.close(fd)
            raise AstrayError(id, place)
        if len(self._kept) >= _KEPT:
            os.close(self._kept.popitem(last=False)[1])
        self._kept[id] = fd
        return fd

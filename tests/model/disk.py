"""The replica's filesystem in memory, as strict as the system calls are.

Inodes have numbers of their own and reuse them at once. What a call refuses, this refuses with the same error; nothing
is forgiven. Limbo is a directory beside the root, on the same filesystem.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field

from replicator.model import Kind


@dataclass(slots=True, eq=False)
class Inode:
    """One inode of the replica."""

    number: tuple[int, int]
    """Number and generation."""
    kind: Kind
    nlink: int = 0
    data: bytearray = field(default_factory=bytearray)
    mode: int = 0
    owner: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    target: bytes = b""
    mtime_ns: int = -2
    names: dict[bytes, Inode] = field(default_factory=dict)
    parent: Inode | None = None


class Disk:
    """The calls that an executor makes."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._next = 100
        self._generation = 0
        self._clock = 1_000_000_000
        self.destroyed = 0
        self.root = self._new(Kind.DIRECTORY)
        self.limbo = self._new(Kind.DIRECTORY)
        self.root.nlink = self.limbo.nlink = 1

    def _new(self, kind: Kind) -> Inode:
        number = self._free.pop() if self._free else self._next
        self._next = max(self._next, number + 1)
        self._generation += 1
        return Inode((number, self._generation), kind, mtime_ns=self._tick())

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def make(self, parent: Inode, name: bytes, kind: Kind) -> Inode:
        self._vacant(parent, name)
        node = self._new(kind)
        self._attach(parent, name, node)
        return node

    def rename(self, old: Inode, old_name: bytes, new: Inode, new_name: bytes) -> None:
        """renameat2 with RENAME_NOREPLACE."""
        node = self._present(old, old_name)
        self._vacant(new, new_name)
        self._not_below(new, node)
        self._detach(old, old_name)
        self._attach(new, new_name, node)

    def exchange(self, old: Inode, old_name: bytes, new: Inode, new_name: bytes) -> None:
        one, two = self._present(old, old_name), self._present(new, new_name)
        self._not_below(new, one)
        self._not_below(old, two)
        self._detach(old, old_name)
        self._detach(new, new_name)
        self._attach(old, old_name, two)
        self._attach(new, new_name, one)

    def link(self, old: Inode, old_name: bytes, new: Inode, new_name: bytes) -> None:
        node = self._present(old, old_name)
        if node.kind is Kind.DIRECTORY:
            raise OSError(errno.EPERM, "hard link to a directory")
        self._vacant(new, new_name)
        self._attach(new, new_name, node)

    def unlink(self, parent: Inode, name: bytes) -> None:
        node = self._present(parent, name)
        if node.kind is Kind.DIRECTORY:
            raise OSError(errno.EISDIR, "unlink of a directory")
        self._detach(parent, name)
        self._reap(node)

    def rmdir(self, parent: Inode, name: bytes) -> None:
        node = self._present(parent, name)
        if node.kind is not Kind.DIRECTORY:
            raise OSError(errno.ENOTDIR, "rmdir of a file")
        if node.names:
            raise OSError(errno.ENOTEMPTY, "rmdir")
        self._detach(parent, name)
        self._reap(node)

    def truncate(self, node: Inode, size: int) -> None:
        self._file(node)
        if size < len(node.data):
            del node.data[size:]
        else:
            node.data.extend(bytes(size - len(node.data)))
        node.mtime_ns = self._tick()

    def punch(self, node: Inode, offset: int, length: int) -> None:
        """fallocate with KEEP_SIZE."""
        self._file(node)
        end = min(offset + length, len(node.data))
        if offset < end:
            node.data[offset:end] = bytes(end - offset)
        node.mtime_ns = self._tick()

    def write(self, node: Inode, offset: int, data: bytes) -> None:
        self._file(node)
        if len(node.data) < offset:
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + len(data)] = data
        node.xattrs.pop(b"security.capability", None)
        node.mtime_ns = self._tick()

    def walk(self, top: Inode) -> Iterator[tuple[Inode, bytes, Inode]]:
        """Every (directory, name, inode) below `top`."""
        pending = [top]
        while pending:
            directory = pending.pop()
            for name, node in directory.names.items():
                yield directory, name, node
                if node.kind is Kind.DIRECTORY:
                    pending.append(node)

    def _present(self, parent: Inode, name: bytes) -> Inode:
        self._directory(parent)
        if name not in parent.names:
            raise OSError(errno.ENOENT, "no such name", name.decode())
        return parent.names[name]

    def _vacant(self, parent: Inode, name: bytes) -> None:
        self._directory(parent)
        if parent.nlink == 0:
            raise OSError(errno.ENOENT, "removed directory")
        if name in parent.names:
            raise OSError(errno.EEXIST, "name taken", name.decode())

    def _directory(self, node: Inode) -> None:
        if node.kind is not Kind.DIRECTORY:
            raise OSError(errno.ENOTDIR, "not a directory")

    def _file(self, node: Inode) -> None:
        if node.kind is not Kind.FILE:
            raise OSError(errno.EINVAL, "not a regular file")

    def _not_below(self, directory: Inode, node: Inode) -> None:
        here: Inode | None = directory
        while here is not None:
            if here is node:
                raise OSError(errno.EINVAL, "a directory into itself")
            here = here.parent

    def _attach(self, parent: Inode, name: bytes, node: Inode) -> None:
        parent.names[name] = node
        parent.mtime_ns = self._tick()
        node.nlink += 1
        if node.kind is Kind.DIRECTORY:
            node.parent = parent

    def _detach(self, parent: Inode, name: bytes) -> None:
        node = parent.names.pop(name)
        parent.mtime_ns = self._tick()
        node.nlink -= 1
        if node.kind is Kind.DIRECTORY:
            node.parent = None

    def _reap(self, node: Inode) -> None:
        if node.nlink == 0:
            self.destroyed += 1
            self._free.append(node.number[0])

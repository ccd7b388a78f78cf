"""The nouns that every room shares: identities, slots, and the facts that cross the wire.

Takes nothing and does nothing: plain values, compared by content. A *fact* describes a present state ("this name
means that inode", "this inode has these attributes and these bytes"), never a step. Offsets, sizes and lengths are
bytes, times are nanoseconds since the epoch, names are the raw bytes the filesystem holds.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, Self

END_OF_FILE = 2**63 - 1
"""The offset that stands for "to the end, wherever that will be": Linux's largest file offset (loff_t)."""


_WIDE: Final = struct.Struct(">QQQQ")
WIDE: Final = _WIDE.size
"""Bytes of the wide form of an id."""


class FileId(NamedTuple):
    """Which inode, for all time: number and generation, in a btrfs root (0 elsewhere), on a filesystem.

    `fs` numbers the filesystems of one sender (0 is the source's). Inode numbers are reused at once, so the
    generation is part of the identity.
    """

    fs: int
    root: int
    ino: int
    gen: int

    def wide(self) -> bytes:
        """WIDE bytes, in the order of ids."""
        return _WIDE.pack(*self)

    @classmethod
    def of_wide(cls, data: bytes) -> Self:
        """Read `wide()` back."""
        return cls(*_WIDE.unpack(data))

    def text(self) -> str:
        """The form used on the wire, in state files and logs: four hexadecimal numbers joined by dots."""
        return f"{self.fs:x}.{self.root:x}.{self.ino:x}.{self.gen:x}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `text()` back. ValueError if it is anything else."""
        parts = text.split(".")
        if len(parts) != 4:
            raise ValueError(f"not a file id: {text!r}")
        fs, root, ino, gen = (int(part, 16) for part in parts)
        if min(fs, root, ino, gen) < 0:
            raise ValueError(f"not a file id: {text!r}")
        return cls(fs, root, ino, gen)


class Slot(NamedTuple):
    """A place for a name: a directory and one name in it. It may be empty."""

    parent: FileId
    name: bytes


_XATTRS = (b"user.", b"trusted.", b"security.", b"system.posix_acl_")
_XFS_SHADOWS = (b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT")
"""How XFS stores what it also shows as POSIX ACLs."""


def replicated_xattr(name: bytes) -> bool:
    """Whether an extended attribute belongs to the file: not one that its filesystem makes up, or shows twice."""
    return name.startswith(_XATTRS) and name not in _XFS_SHADOWS


class Kind(StrEnum):
    """What an inode is; the letters of `find -type`."""

    FILE = "f"
    DIRECTORY = "d"
    SYMLINK = "l"
    FIFO = "p"
    SOCKET = "s"
    CHARACTER = "c"
    BLOCK = "b"


_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
}


def kind_of(mode: int) -> Kind:
    """The kind of an inode with this st_mode."""
    return _KINDS[stat.S_IFMT(mode)]


class Extent(NamedTuple):
    """`length` bytes from `offset`."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first offset behind it."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Attributes:
    """Everything an inode has besides its names and bytes."""

    mode: int
    """The permission bits, including setuid, setgid and sticky (07777); the type is the fact's `kind`."""
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    """Not set on the replica; kept to recognise later that nothing has changed since."""
    rdev: int = 0
    target: bytes = b""
    """Where a symbolic link points."""
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    """All that `replicated_xattr` says yes to: POSIX ACLs (system.posix_acl_*), security.* and trusted.* included."""


@dataclass(frozen=True, slots=True)
class SlotFact:
    """This name means that inode, or (None) nothing."""

    slot: Slot
    id: FileId | None


@dataclass(frozen=True, slots=True)
class InodeFact:
    """The present state of one inode, with the bytes that changed since the replica was last told.

    A receiver truncates to `lowest`, punches `holes`, writes `data` (the bytes travel beside the fact), and, unless
    `partial`, sets `size` and all attributes.
    """

    id: FileId
    kind: Kind
    attributes: Attributes
    size: int
    """Bytes for a regular file, 0 for all else."""
    whole: bool = False
    """`data` and `holes` (with those of the partial facts that follow) are the complete content, so that an inode the
    receiver does not know can be made from it. Always true for what is not a regular file."""
    partial: bool = False
    """More of this flush follows in later epochs; neither size nor attributes are final yet."""
    check: bool = False
    """Carries no bytes: the receiver compares what it has, and doubts or needs it if it differs."""
    deep: bool = False
    """Of a check of a regular file: its content is in doubt, whatever size and times say."""
    settled: bool = True
    """Whatever changes the file later will show in its ctime: worth remembering for a later check."""
    lowest: int | None = None
    """The smallest size the file has had since the last flush; None if it was not truncated."""
    data: tuple[Extent, ...] = ()
    holes: tuple[Extent, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """One epoch: facts that are applied together, in the receiver's own order."""

    epoch: int
    slots: tuple[SlotFact, ...] = ()
    inodes: tuple[InodeFact, ...] = ()
    dead: tuple[FileId, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing that the replica could not do for now, and why: the sender keeps owing it."""

    id: FileId
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiver says of an applied epoch: what it must be told again before it can be complete."""

    epoch: int
    needs: tuple[FileId, ...] = ()
    """Inodes to send whole, with their slots; directories to list."""
    looks: tuple[Slot, ...] = ()
    """Slots that could not be set yet: look at them again."""
    refusals: tuple[Refusal, ...] = ()
    doubts: tuple[FileId, ...] = ()
    """Regular files, checked in this epoch, that the replica has with a content that is not certain: to be compared
    block by block. The sender owes whatever differs."""

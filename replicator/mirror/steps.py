"""The vocabulary between planner and executor: places, what the inventory knows, and the few steps there are.

A *place* is a Slot; limbo, where inodes without a name in the tree wait, is a directory whose id is LIMBO. Each naming
step stands for exactly one system call and is compare-and-set: it names what must be at its places now, so a step that
was already carried out, or that finds something else, is recognised. Pure values; nothing is done here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from replicator.model import FileId, Kind, Slot

LIMBO = FileId(0, 0, 0, 0)
"""The directory id of limbo. No source inode has number 0; a fact that names it is refused."""


def limbo_place(id: FileId) -> Slot:
    """Where an inode waits in limbo."""
    return Slot(LIMBO, id.text().encode())


@dataclass(frozen=True, slots=True)
class Record:
    """What the replica knows of one inode it has."""

    kind: Kind
    size: int = 0
    mtime_ns: int = -1
    """The source's time that belongs to the content; -1 when none does (in the middle of a flush)."""
    ctime_ns: int | None = None
    """The source's change time, if it is worth comparing."""
    complete: bool = True
    """False while a whole content is arriving in parts."""
    suspect: bool = False
    """The bytes are not known for certain; only a whole content mends that."""

    @property
    def sound(self) -> bool:
        """The content is exactly what the source had at some time."""
        return self.complete and not self.suspect


class View(Protocol):
    """What the planner asks of an inventory. Answers must not change while a plan is being made."""

    @property
    def root(self) -> FileId:
        """The source's root directory: always known, has no place, never moves."""

    def record(self, id: FileId) -> Record | None:
        """None: the replica does not have it."""

    def bound(self, place: Slot) -> FileId | None:
        """Which inode that is known has this name."""

    def places(self, id: FileId) -> Collection[Slot]:
        """All names of an inode, those in limbo included. A directory has one (the root: none)."""

    def children(self, directory: FileId) -> Iterable[tuple[bytes, FileId]]:
        """The known names in a directory."""


@dataclass(frozen=True, slots=True)
class Create:
    """Make a new inode at limbo_place(id) with all that facts.inodes[fact] says (content, holes, owner, mode, xattrs).

    Effect: record(id) exists, complete unless the fact is partial; one place.
    """

    id: FileId
    fact: int

    @property
    def place(self) -> Slot:
        """Where it is made."""
        return limbo_place(self.id)


@dataclass(frozen=True, slots=True)
class Rename:
    """Move the name at `source`, which must be `id`, to `target`, which must be empty."""

    id: FileId
    source: Slot
    target: Slot


@dataclass(frozen=True, slots=True)
class Link:
    """Give `id` (no directory), which has the name `source`, the name `target` as well, which must be empty."""

    id: FileId
    source: Slot
    target: Slot


@dataclass(frozen=True, slots=True)
class Exchange:
    """Swap the names `source` (must be `id`) and `target` (must be `other`) in one instant."""

    id: FileId
    source: Slot
    target: Slot
    other: FileId


@dataclass(frozen=True, slots=True)
class Unlink:
    """Remove the name `place`, which must be `id` (no directory). The last name goes only if `final`.

    Effect of the last one: record(id) is gone.
    """

    id: FileId
    place: Slot
    final: bool = False


@dataclass(frozen=True, slots=True)
class Rmdir:
    """Remove the directory `id`, which must be at `place` and have no known children. record(id) is gone."""

    id: FileId
    place: Slot


@dataclass(frozen=True, slots=True)
class Write:
    """Bring content in place: truncate to `lowest`, punch, write, and unless partial set the size (regular files).

    Effect: record is what `after_write` gives.
    """

    id: FileId
    fact: int


@dataclass(frozen=True, slots=True)
class Adorn:
    """Set owner, mode, the exact set of xattrs, and the modification time, of a known inode."""

    id: FileId
    fact: int


@dataclass(frozen=True, slots=True)
class Doubt:
    """The sender is going to compare the content of `id` (a regular file with a name in the tree) block by block.

    Effect: record is what `doubted` gives; nothing on disk changes.
    """

    id: FileId


@dataclass(frozen=True, slots=True)
class Stamp:
    """Set a directory's modification time to its record's, because names in it changed. Ignored if it is gone."""

    id: FileId


Naming = Rename | Link | Exchange | Unlink | Rmdir
Step = Create | Naming | Write | Adorn | Doubt | Stamp


@dataclass(slots=True)
class Plan:
    """Steps in the order they must be taken, and what the sender must tell again."""

    steps: list[Step] = field(default_factory=list)
    needs: dict[FileId, None] = field(default_factory=dict)
    looks: dict[Slot, None] = field(default_factory=dict)
    doubts: dict[FileId, None] = field(default_factory=dict)

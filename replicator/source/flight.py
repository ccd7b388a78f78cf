"""What is on its way to the replica: flushes being read, the parts they give, epochs that are not durable yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import Owed
from replicator.model import FileId, InodeFact, Slot
from replicator.tree.resolver import Due
from replicator.tree.store import Told

SETTLED_AFTER = 50_000_000
"""A file whose ctime was this close (ns) when its flush was taken may have changed, or change, unseen by it."""
SLICE = 4 << 20
"""Most bytes of data in a part."""


@dataclass(slots=True)
class Flush:
    """One inode's owed state on its way out, possibly in several slices."""

    owed: Owed
    known_size: int | None
    """The size that the replica was last told; None if that is forgotten."""
    left: RangeSet | None = None
    """What further slices must read; None before the first."""
    size: int = 0
    """The size at the first slice: what the last one may announce at most."""
    taken: int = 0
    """When everything drained so far was in it, ns since the epoch."""
    even: bool = True
    """Whether that clock had not been set just before."""
    begun: int = 0
    """The same moment by CLOCK_MONOTONIC, ns."""
    fence: int = 0
    """The kernel side's epoch when it was taken; 0 while that tells every write."""
    regular: bool = False
    """Whether it is known that the inode is a regular file."""
    most: int = SLICE
    """Bytes of data in its next slice at most."""


@dataclass(slots=True)
class Part:
    """A finished read: a fact and its bytes (offset, bytes)."""

    flush: Flush
    fact: InodeFact
    data: list[tuple[int, bytes]]
    waited: int = 0
    """The time (CLOCK_MONOTONIC, ns) from which on the inode's lock was waited for."""
    read: int = 0
    """The time from which on it was read."""
    sent: list[tuple[int, int]] = field(default_factory=list)
    """Ranges [start, end) that it carries, as bytes or holes, as they were then."""

    @property
    def size(self) -> int:
        """Bytes that it carries."""
        return sum(len(data) for _, data in self.data)


@dataclass(slots=True)
class Epoch:
    """What one epoch carried, to be forgotten when it is durable and owed again when it is lost."""

    number: int
    slots: dict[Slot, Due] = field(default_factory=dict)
    dead: dict[FileId, Due] = field(default_factory=dict)
    flushes: list[Flush] = field(default_factory=list)
    whole: set[FileId] = field(default_factory=set)
    asked: set[FileId] = field(default_factory=set)
    """Files whose content it asks about."""
    bytes: int = 0
    bulk: int = 0
    """Of these, those of big changes."""
    applied: bool = False
    told: Told = field(default_factory=Told)
    """What it says, for the index."""

    def sinces(self) -> Iterator[int]:
        """The time of the oldest change behind each thing that it completes."""
        yield from (flush.owed.since for flush in self.flushes)
        yield from (due.since for due in self.slots.values())
        yield from (due.since for due in self.dead.values())

    def tokens(self) -> Iterator[int]:
        """The generations whose tokens it holds."""
        yield from (flush.owed.generation for flush in self.flushes)
        yield from (due.generation for due in self.slots.values())
        yield from (due.generation for due in self.dead.values())

"""The dirty table: per inode, what changed since the replica was last told.

Takes marks (ranges, sizes, flags) and lost flushes folded back; gives flushes, each the whole of what one inode owes at
that moment. A flush takes its entry's token (see generations.py) along. Pure; memory is bounded per inode by the limit
of its range set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from replicator.dirty.generations import Generations
from replicator.dirty.ranges import RangeSet
from replicator.dirty.writers import Share
from replicator.model import END_OF_FILE, FileId


@dataclass(slots=True)
class Owed:
    """What one inode owes. Attributes are always owed with it."""

    id: FileId
    generation: int
    """The oldest change's generation; this holds one token of it."""
    since: int
    """The oldest change's time, CLOCK_MONOTONIC in ns."""
    written: int = 0
    """The time, as `since`, of the newest record of bytes that were in the file at that time."""
    begun: int = 0
    """That of the newest record of bytes that may have been on their way still."""
    sized: int = 0
    """That of the newest record of a size; it may have been on its way."""
    changed: int = 0
    """That of the newest change of anything else; it may have been on its way."""
    ranges: RangeSet = field(default_factory=RangeSet)
    folios: RangeSet = field(default_factory=RangeSet)
    """Ranges of mapped folios, of which perhaps only single pages changed."""
    lowest: int | None = None
    """The lowest size since the last flush; None if the size was not set."""
    whole: bool = False
    check: bool = False
    """Only ask whether the replica has it; becomes deep when anything else is owed."""
    deep: bool = False
    """The content on the replica is in doubt, whatever size and times say: compare it block by block."""
    mapped: bool = False
    """The file has, or had, writable shared mappings: flush them before reading."""
    holes: bool = False
    """Ranges may have become holes."""
    epoch: int = 0
    """The newest, in full, of a record after which repeats are not told (capture/fence.py); 0 if there is none."""
    waited: bool = False
    """A read has waited for the inode's lock, and left it at that."""
    beyond: int = 0
    """How often a read found ranges beyond the end of the file."""
    share: Share = field(default_factory=Share)
    """Who changed it, as far as that is known."""

    def absorb(self, other: Owed) -> None:
        """Unite with another of the same inode; neither's token is touched."""
        self.since = min(self.since, other.since)
        self.written = max(self.written, other.written)
        self.begun = max(self.begun, other.begun)
        self.sized = max(self.sized, other.sized)
        self.changed = max(self.changed, other.changed)
        self.ranges.update(other.ranges)
        self.folios.update(other.folios)
        if other.lowest is not None:
            self.lower(other.lowest)
        self.check = self.check or other.check
        self.deep = self.deep or other.deep
        self.whole = self.whole or other.whole
        self.waited = self.waited or other.waited
        self.mapped |= other.mapped
        self.holes |= other.holes
        self.epoch = max(self.epoch, other.epoch)
        self.share.update(other.share)

    def lower(self, size: int) -> None:
        """The file had this size at some moment."""
        self.lowest = size if self.lowest is None else min(self.lowest, size)

    def mark_whole(self) -> None:
        """All of its content is owed."""
        self.whole = True
        self.lowest = 0
        self.holes = True
        self.ranges = RangeSet([(0, END_OF_FILE)])
        self.folios = RangeSet()

    @property
    def touched(self) -> bool:
        """Whether bytes or the size changed, besides attributes."""
        return self.whole or self.lowest is not None or bool(self.ranges) or bool(self.folios)


class DirtyTable:
    """The entries by inode, in the order in which they first became dirty."""

    def __init__(self, generations: Generations) -> None:
        self.generations = generations
        self._entries: dict[FileId, Owed] = {}
        self.fence = 0
        """The kernel side's present epoch; 0 while that tells every write."""
        self.repeats = False
        """Whether, since it was last set to False, a record was merged after which repeats are not told."""
        self._watches: list[set[FileId]] = []

    def watch(self, ids: Iterable[FileId]) -> set[FileId]:
        """A set of these, from which each vanishes when it is touched; until `unwatch`."""
        watch = set(ids)
        self._watches.append(watch)
        return watch

    def unwatch(self, watch: set[FileId]) -> None:
        """Nobody asks any more."""
        self._watches = [other for other in self._watches if other is not watch]

    def touch(self, id: FileId) -> None:
        """Something about it changed."""
        for watch in self._watches:
            watch.discard(id)

    def mark(self, id: FileId, now: int, generation: int | None = None, *, complete: bool = False) -> Owed:
        """The entry of `id`, made if there was none; its attributes are owed from here on.

        `now` as `Owed.since`; `generation` is that of what led here, if it is older than the current one. The change
        may be under way still, unless `complete`: then the caller keeps the other times.
        """
        if self._watches:
            self.touch(id)
        entry = self._entries.get(id)
        if entry is None:
            entry = self._entries[id] = Owed(id, self.generations.hold(generation), now)
        if not complete:
            entry.changed = max(entry.changed, now)
        entry.since = min(entry.since, now)
        if generation is not None and generation < entry.generation:
            entry.generation = self.generations.merge(entry.generation, self.generations.hold(generation))
        return entry

    def take(self, id: FileId) -> Owed:
        """Remove and return what `id` owes, with its token. KeyError if it owes nothing."""
        return self._entries.pop(id)

    def fold(self, owed: Owed) -> None:
        """Take back what was taken and did not become durable."""
        entry = self._entries.get(owed.id)
        if entry is None:
            self._entries[owed.id] = owed
            return
        entry.generation = self.generations.merge(entry.generation, owed.generation)
        entry.absorb(owed)

    def seen(
        self,
        owed: Owed,
        waited: int,
        read: int,
        sent: list[tuple[int, int]],
        size: int,
        *,
        all_read: bool,
        fence: int = 0,
    ) -> None:
        """The flush `owed` was read from time `read` on, after waiting from `waited` on for the inode's lock.

        What is owed since, but was changed before, was in what was read, as far as that was sent: it is owed no more,
        or rather by that flush. `sent`: ranges [start, end); `size`: the file's, at the read; `all_read`: the flush
        ends with this read, and so carries the attributes too. `fence`: the epoch that was the present one when the
        flush was taken: what a record of this one, or a later, stands for may have come after the read.
        """
        entry = self._entries.get(owed.id)
        if entry is None or entry.written > read or entry.begun > waited:
            return
        if (
            entry.whole
            or entry.check
            or entry.deep
            or entry.mapped
            or owed.mapped
            or (entry.epoch and entry.epoch >= fence)
        ):
            return
        for start, end in sent:
            entry.ranges.remove(start, end)
        # A truncation is part of one as deep that the flush tells of, if all bytes behind it go along.
        told = entry.lowest is not None and owed.lowest is not None and owed.lowest <= entry.lowest < size
        if told and entry.sized <= waited and RangeSet(sent).covers(entry.lowest or 0, size):
            entry.lowest = None
        if all_read and not entry.touched and max(entry.changed, entry.sized) <= waited:
            del self._entries[owed.id]
            owed.generation = self.generations.merge(owed.generation, entry.generation)
            owed.since = min(owed.since, entry.since)
            owed.share.update(entry.share)

    def ask_first(self, owed: Owed) -> Owed:
        """Of a flush whose content is asked about before bytes are sent: the asking part, with a token.

        What else it owes comes back into the table. An entry of the same inode must not be read before the answer.
        """
        if owed.whole:
            owed.check = owed.deep = False  # all of it is sent
            return owed
        if not owed.deep and not (owed.check and owed.touched):
            return owed
        if not owed.touched:
            owed.check = owed.deep = True
            return owed
        asking = Owed(owed.id, self.generations.hold(owed.generation), owed.since, mapped=owed.mapped)
        asking.check = asking.deep = True
        owed.check = owed.deep = False
        self.fold(owed)
        return asking

    def drop(self, id: FileId) -> None:
        """Owe nothing for `id` any more: it is gone, or outside the tree."""
        entry = self._entries.pop(id, None)
        if entry is not None:
            self.generations.release(entry.generation)

    def get(self, id: FileId) -> Owed | None:
        """The entry of `id`, if it owes anything."""
        return self._entries.get(id)

    def __contains__(self, id: object) -> bool:
        return id in self._entries

    def __iter__(self) -> Iterator[FileId]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def values(self) -> Iterator[Owed]:
        """All entries, oldest first."""
        return iter(self._entries.values())

"""What goes into the next epoch, and what is in flight.

Takes marks, looks and finished reads; gives reads to be done and epochs to be sent; hears the receiver's answers. It
owns the index, the dirty table, the resolver and the generations of one source. No I/O: the reads and looks are done by
whoever drives it.

An inode is *unshipped* until an epoch with the last part of its content was composed. Slots that name it, or lie in it,
wait for that. This is a belief that saves round trips, not a truth: the receiver says what it misses, and that is owed
again. Everything in an epoch that is not durable is owed again when the connection is lost.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from replicator.dirty.generations import Generations
from replicator.dirty.outsiders import MappedOutsiders
from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import DirtyTable, Owed
from replicator.model import END_OF_FILE, Answer, Facts, FileId, InodeFact, Slot, SlotFact
from replicator.tree.exclude import Exclude
from replicator.tree.index import TreeIndex
from replicator.tree.resolver import Changes, Due, Resolver

EPOCH_BYTES = 8 << 20
EPOCH_INODES = 2000
EPOCH_SLOTS = 20_000
KNOWN_SIZES = 1 << 16
RETRY_FIRST, RETRY_LAST = 200_000_000, 10_000_000_000  # ns

_Key = TypeVar("_Key", Slot, FileId)
Payload = list[tuple[int, int, bytes]]
"""(index into the facts' inodes, offset in the file, bytes)."""


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


@dataclass(slots=True)
class Epoch:
    """What one epoch carried, to be forgotten when it is durable and owed again when it is lost."""

    number: int
    slots: dict[Slot, Due] = field(default_factory=dict)
    dead: dict[FileId, Due] = field(default_factory=dict)
    flushes: list[Flush] = field(default_factory=list)
    whole: set[FileId] = field(default_factory=set)
    bytes: int = 0
    applied: bool = False

    def sinces(self) -> Iterator[int]:
        """The time of the oldest change behind each thing that it completes."""
        yield from (flush.owed.since for flush in self.flushes)
        yield from (due.since for due in self.slots.values())
        yield from (due.since for due in self.dead.values())


class Outbox:
    """The sender's state, driven by its loop. Times are CLOCK_MONOTONIC in ns."""

    def __init__(self, root: FileId, exclude: Exclude, clock: Callable[[], int] = time.time_ns) -> None:
        """`clock`: ns since the epoch, as the kernel's for ctime."""
        self._clock = clock
        self.generations = Generations()
        self.table = DirtyTable(self.generations)
        self.outsiders = MappedOutsiders()
        self.index = TreeIndex(root)
        self.resolver = Resolver(self.index, exclude, self.generations)
        self.inflight: deque[Epoch] = deque()
        self.checking = False
        """New members are offered to the receiver for comparison before their bytes are sent."""
        self.unlisted: dict[FileId, Due] = {}
        """Directories whose names must be compared with the replica's."""
        self._number = 0
        self._unshipped: dict[FileId, None] = {}
        self._reading: dict[FileId, Flush] = {}
        self._more: deque[Flush] = deque()
        self._parts: deque[Part] = deque()
        self._order = 0
        self._slots: dict[Slot, tuple[int, Due]] = {}
        """Slots to tell, in the order in which they were queued, with that order."""
        self._before: dict[Slot, FileId] = {}
        """What was in queued slots: it must not lose a name before the new one can be told."""
        self._free: dict[Slot, None] = {}
        self._waiting: dict[FileId, set[Slot]] = {}
        self._dead: dict[FileId, tuple[int, Due]] = {}
        """Inodes to give up, each only after all slots that were queued before it: they fill the places it leaves."""
        self._sizes: OrderedDict[FileId, int] = OrderedDict()
        self._retry: dict[FileId, tuple[int, int]] = {}
        """Inodes that failed: to be left alone until a time, and the delay that led there."""
        self._resting: dict[FileId, int] = {}
        self._unsettled: OrderedDict[FileId, int] = OrderedDict()
        """Inodes whose last fact could not be called settled, and when it was taken."""

    # ------------------------------------------------------------------ what changed

    def start(self, now: int) -> None:
        """Owe the root and everything below it."""
        self._owe_new(self.index.root, now, None)
        self.resolver.list(self.index.root, now)

    def changed(self, changes: Changes, looked: int) -> None:
        """Take over what the resolver found. `looked`: when its looks were over.

        The records of what happened before `looked` must be merged before the next `compose`.
        """
        for id, due in changes.members:
            self._owe_new(id, due.since, due.generation)
            if self.index.is_directory(id) and (self.checking or self._is_dying(id)):
                self.compare_names(id, due.since, due.generation)
        for slot, due, before in changes.slots:
            due.looked = looked
            self._queue_slot(slot, due)
            if before is not None:
                self._before[slot] = before
        for id, due in changes.dead:
            self._forget(id)
            self._queue_dead(id, due)

    def current(self, flush: Flush) -> bool:
        """Whether the flush is still wanted: a lost connection folds every flush that is being read back."""
        return self._reading.get(flush.owed.id) is flush

    def compare_names(self, directory: FileId, now: int, generation: int | None = None) -> None:
        """The replica may have names in this directory that nobody remembers here."""
        if directory not in self.unlisted:
            self.unlisted[directory] = Due(self.generations.hold(generation), now)

    def take_unlisted(self, most: int) -> dict[FileId, Due]:
        """Directories, known to the replica by now, whose names are to be compared with it; with their tokens."""
        known = [id for id in self.unlisted if id not in self._unshipped]
        return {id: self.unlisted.pop(id) for id in known[:most]}

    def declare_dead(self, id: FileId, now: int) -> None:
        """The replica has an inode that is not (any more) in the tree."""
        if not self.index.is_member(id):
            self._queue_dead(id, Due(self.generations.hold(), now))

    def _is_dying(self, id: FileId) -> bool:
        return id in self._dead or any(id in epoch.dead for epoch in self.inflight)

    def gone(self, flush: Flush) -> None:
        """A read found that the inode does not exist any more: its names will tell, nothing is owed for it."""
        if self.current(flush):
            del self._reading[flush.owed.id]
            self.generations.release(flush.owed.generation)

    def owe_again(self, flush: Flush, ranges: RangeSet, now: int) -> None:
        """A read could not see these ranges yet; they stay dirty, with the age of the flush."""
        if not self.current(flush):
            return
        owed = self.table.mark(flush.owed.id, min(now, flush.owed.since), flush.owed.generation)
        owed.ranges.update(ranges)
        owed.beyond = flush.owed.beyond + 1

    def failed(self, flush: Flush, now: int) -> None:
        """A read failed; everything stays owed and is tried again later."""
        if not self.current(flush):
            return
        del self._reading[flush.owed.id]
        self._defer(flush.owed.id, now)
        self.table.fold(flush.owed)

    def _owe_new(self, id: FileId, since: int, generation: int | None) -> None:
        owed = self.table.mark(id, since, generation)
        owed.mapped |= self.outsiders.take(id)
        if self.checking and not owed.touched:
            owed.check = True
        else:
            owed.mark_whole()
        self._unshipped[id] = None

    def _forget(self, id: FileId) -> None:
        flush, owed = self._reading.get(id), self.table.get(id)
        if (owed is not None and owed.mapped) or (flush is not None and flush.owed.mapped):
            self.outsiders.note(id)  # it may come back with pages that were not written out
        self.table.drop(id)
        self._unshipped.pop(id, None)
        self._sizes.pop(id, None)
        self._retry.pop(id, None)
        self._resting.pop(id, None)
        self._unsettled.pop(id, None)
        due = self.unlisted.pop(id, None)
        if due is not None:
            self.generations.release(due.generation)
        self._release_waiting(id)

    # ------------------------------------------------------------------ reads

    def next_reads(self, now: int, items: int, big: int = 1 << 20, big_items: int = 2) -> list[Flush]:
        """Up to `items` flushes to read (a slice of), small ones before those of more than `big` bytes."""
        chosen: list[Flush] = []
        bulky = [self._more.popleft() for _ in range(min(len(self._more), big_items))]
        room = big_items - len(bulky)
        late: list[FileId] = []
        for id in self._eligible(now, items * 4):
            if len(chosen) >= items:
                break
            owed = self.table.get(id)
            if owed is not None and owed.ranges.total > big and not owed.whole:
                late.append(id)
                continue
            chosen.append(self._begin(id))
        chosen += [self._begin(id) for id in late[: max(0, room)]]
        return chosen + bulky

    def _eligible(self, now: int, most: int) -> list[FileId]:
        result = []
        for id in self.table:
            if id in self._reading or (id in self._retry and self._retry[id][0] > now):
                continue
            if id in self._resting:
                if self._resting[id] > now:
                    continue
                del self._resting[id]
            result.append(id)
            if len(result) >= most:
                break
        return result

    def _begin(self, id: FileId) -> Flush:
        owed = self.table.take(id)
        if owed.check and owed.touched:
            owed.check = False
            owed.mark_whole()
        flush = self._reading[id] = Flush(owed, self._sizes.get(id), taken=self._clock())
        return flush

    def read_done(self, part: Part) -> None:
        """A slice was read. If its fact is partial, the flush's `left` and `size` tell the next one where to go on."""
        if not self.index.is_member(part.flush.owed.id):
            self.gone(part.flush)
        elif self.current(part.flush):
            self.table.seen(part.flush.owed, part.waited, part.read, part.sent, all_read=not part.fact.partial)
            self._parts.append(part)

    @property
    def reading(self) -> int:
        """Flushes begun and not yet composed to their end."""
        return len(self._reading)

    @property
    def readable(self) -> bool:
        """Whether a slice of a begun flush waits to be read."""
        return bool(self._more)

    # ------------------------------------------------------------------ epochs

    def compose(self) -> tuple[Facts, Payload] | None:
        """The next epoch, or None when nothing is ready. It is in flight from here on."""
        epoch = Epoch(self._number + 1)
        inodes: list[InodeFact] = []
        payload: Payload = []
        size = 0
        while self._parts and size < EPOCH_BYTES and len(inodes) < EPOCH_INODES:
            part = self._parts.popleft()
            id = part.flush.owed.id
            if not self.index.is_member(id):
                self.gone(part.flush)
                continue
            payload += [(len(inodes), offset, data) for offset, data in part.data]
            size += sum(len(data) for _, data in part.data)
            inodes.append(part.fact)
            if part.fact.partial:
                self._more.append(part.flush)
            else:
                self._complete(id, part, epoch)
        slots = self._take_slots(epoch)
        dead = self._take_dead(epoch)
        if not (inodes or slots or dead):
            return None
        self._number += 1
        epoch.bytes = size
        self.inflight.append(epoch)
        return Facts(epoch.number, tuple(slots), tuple(inodes), tuple(dead)), payload

    def _complete(self, id: FileId, part: Part, epoch: Epoch) -> None:
        self._reading.pop(id, None)
        self._unshipped.pop(id, None)
        epoch.flushes.append(part.flush)
        if part.flush.owed.whole:
            epoch.whole.add(id)
        self._sizes[id] = part.fact.size
        self._sizes.move_to_end(id)
        if len(self._sizes) > KNOWN_SIZES:
            self._sizes.popitem(last=False)
        if not part.fact.settled and not part.flush.owed.mapped:
            self._unsettled[id] = part.flush.taken
            self._unsettled.move_to_end(id)
        self._release_waiting(id)

    def _take_slots(self, epoch: Epoch) -> list[SlotFact]:
        facts: list[SlotFact] = []
        free, self._free = list(self._free), {}
        for at, slot in enumerate(free):
            if len(facts) >= EPOCH_SLOTS:
                self._free.update(dict.fromkeys(free[at:]))
                break
            if slot not in self._slots:
                continue
            if not self.index.is_member(slot.parent):
                self.generations.release(self._unqueue(slot).generation)
                continue
            target = self.index.get(slot)
            blocker = self._blocker(slot, target, self._slots[slot][1].looked)
            if blocker is not None:
                self._waiting.setdefault(blocker, set()).add(slot)
                continue
            epoch.slots[slot] = self._unqueue(slot)
            facts.append(SlotFact(slot, target))
        return facts

    def _unqueue(self, slot: Slot) -> Due:
        self._before.pop(slot, None)
        return self._slots.pop(slot)[1]

    def _blocker(self, slot: Slot, target: FileId | None, looked: int) -> FileId | None:
        """Whose content must be told before this slot can be."""
        for id in (slot.parent, target):
            if id is not None and id in self._unshipped:
                return id
        # A name must not show bytes from before it was given (write, then rename), nor may the old name go first.
        for id in (target, self._before.get(slot)):
            if id is not None and self.index.is_member(id) and self._owed_since(id) <= looked:
                return id
        return None

    def _owed_since(self, id: FileId) -> int:
        """The time of the oldest change of a file's bytes that was not composed; far away if there is none."""
        flush, owed = self._reading.get(id), self.table.get(id)
        times = [each.since for each in (flush.owed if flush else None, owed) if each is not None and each.touched]
        return min(times, default=END_OF_FILE)

    def _take_dead(self, epoch: Epoch) -> list[FileId]:
        first = next(iter(self._slots.values()), (self._order + 1, None))[0]
        ids = list(islice((id for id, (order, _) in self._dead.items() if order < first), EPOCH_SLOTS))
        for id in ids:
            due = self._dead.pop(id)[1]
            if self.index.is_member(id):
                self.generations.release(due.generation)
            else:
                epoch.dead[id] = due
        return list(epoch.dead)

    def _release_waiting(self, id: FileId) -> None:
        for slot in self._waiting.pop(id, ()):
            self._free[slot] = None

    def _queue_slot(self, slot: Slot, due: Due) -> None:
        self._queue(self._slots, slot, due)
        self._free[slot] = None

    def _queue_dead(self, id: FileId, due: Due) -> None:
        self._queue(self._dead, id, due)

    def _queue(self, queue: dict[_Key, tuple[int, Due]], key: _Key, due: Due) -> None:
        self._order += 1
        if key in queue:
            known = queue[key][1]
            known.generation = self.generations.merge(known.generation, due.generation)
            known.since = min(known.since, due.since)
            known.looked = max(known.looked, due.looked)
        else:
            queue[key] = (self._order, due)

    # ------------------------------------------------------------------ what the receiver says

    def applied(self, answer: Answer, now: int) -> list[int]:
        """An epoch is visible on the replica; returns the ages, in ns, of what it completed."""
        epoch = next((epoch for epoch in self.inflight if epoch.number == answer.epoch), None)
        if epoch is None or epoch.applied:
            return []
        epoch.applied = True
        refused = {refusal.id for refusal in answer.refusals}
        oldest = min(epoch.sinces(), default=now)
        generation = min(self._tokens(epoch), default=None)
        for id in dict.fromkeys((*answer.needs, *refused)):
            if id in refused:
                self._defer(id, now)
            elif not any(id in later.whole for later in self.inflight if later.number > epoch.number):
                self._retry.pop(id, None)
            else:
                continue  # it is on its way already
            self._owe_whole(id, oldest, generation)
        for slot in answer.looks:
            self.resolver.look(slot, oldest, generation, force=True)
        for flush in epoch.flushes:
            if flush.owed.id not in refused:
                self._retry.pop(flush.owed.id, None)
        return [now - since for since in epoch.sinces()]

    def durable(self, number: int, now: int) -> list[int]:
        """Epochs up to `number` survive a power cut on the replica; returns the ages of what they completed."""
        ages: list[int] = []
        while self.inflight and self.inflight[0].number <= number:
            epoch = self.inflight.popleft()
            ages += [now - since for since in epoch.sinces()]
            for generation in self._tokens(epoch):
                self.generations.release(generation)
        return ages

    def disconnected(self) -> None:
        """The connection is lost: all that is not durable is owed again."""
        self._parts.clear()
        self._more.clear()
        for epoch in self.inflight:
            for flush in epoch.flushes:
                self._unlearn_size(flush)
                self._fold(flush.owed)
            for slot, due in epoch.slots.items():
                self._queue_slot(slot, due)
            for id, due in epoch.dead.items():
                self._queue_dead(id, due)
        self.inflight.clear()
        for flush in list(self._reading.values()):
            self._fold(flush.owed)
        self._reading.clear()
        self._retry.clear()

    def compare_all(self, now: int) -> None:
        """The replica is not what it was believed to be: offer everything for comparison."""
        self._sizes.clear()
        for id in self.index.subtree(self.index.root):
            owed = self.table.mark(id, now)
            if not owed.touched:
                owed.check = True
            self._unshipped[id] = None
            for slot in self.index.slots_of(id):
                self._queue_slot(slot, Due(self.generations.hold(), now))

    def _unlearn_size(self, flush: Flush) -> None:
        """The replica may never have been told the size of a lost flush, only that of the one before."""
        known = self._sizes.pop(flush.owed.id, None)
        if known is not None and flush.known_size is not None:
            self._sizes[flush.owed.id] = min(known, flush.known_size)

    def _fold(self, owed: Owed) -> None:
        if not self.index.is_member(owed.id):
            self.generations.release(owed.generation)
            return
        if owed.whole or owed.check:
            self._unshipped[owed.id] = None
        self.table.fold(owed)

    def _owe_whole(self, id: FileId, since: int, generation: int | None) -> None:
        if not self.index.is_member(id):
            self._queue_dead(id, Due(self.generations.hold(generation), since))
            return
        self.table.mark(id, since, generation).mark_whole()
        self._sizes.pop(id, None)
        self._unshipped[id] = None
        slots = list(self.index.slots_of(id))
        if self.index.is_directory(id):
            slots += [Slot(id, name) for name in self.index.children(id)]
        for slot in slots:
            self._queue_slot(slot, Due(self.generations.hold(generation), since))

    def _defer(self, id: FileId, now: int) -> None:
        delay = min(RETRY_LAST, 2 * self._retry[id][1]) if id in self._retry else RETRY_FIRST
        self._retry[id] = (now + delay, delay)

    @staticmethod
    def _tokens(epoch: Epoch) -> Iterable[int]:
        yield from (flush.owed.generation for flush in epoch.flushes)
        yield from (due.generation for due in epoch.slots.values())
        yield from (due.generation for due in epoch.dead.values())

    def settle(self, now: int, after: int = 5_000_000_000, most: int = 1000) -> None:
        """Tell the replica once more about up to `most` inodes that have been quiet for `after` ns.

        Now their ctime proves that nothing changed since, so that a later comparison need not send them again.
        """
        before = self._clock() - after
        for _ in range(min(most, len(self._unsettled))):
            id, taken = next(iter(self._unsettled.items()))
            if taken > before:
                return
            del self._unsettled[id]
            if self.index.is_member(id) and id not in self.table and id not in self._reading:
                self.table.mark(id, now)

    def rest(self, id: FileId, until: int) -> None:
        """Do not read this inode again before `until`: reading it is costly."""
        self._resting[id] = until

    # ------------------------------------------------------------------ figures

    @property
    def last_epoch(self) -> int:
        """The number of the last epoch that was composed."""
        return self._number

    def dirty_bytes(self, sample: int = 20_000) -> int:
        """Bytes that are owed and not durable; beyond `sample` dirty inodes an extrapolation from those."""
        counted = total = 0
        for owed in islice(self.table.values(), sample):
            counted += 1
            for ranges in (owed.ranges, owed.folios):
                end = min(ranges.end, self._sizes.get(owed.id, 0)) if ranges.end == END_OF_FILE else ranges.end
                total += ranges.within(end).total
        if counted:
            total = total * len(self.table) // counted
        return total + sum(epoch.bytes for epoch in self.inflight)

    def next_retry(self) -> int | None:
        """When the first deferred inode may be tried again."""
        due = [at for id, (at, _) in self._retry.items() if id in self.table]
        due += [at for id, at in self._resting.items() if id in self.table]
        return min(due, default=None)

    def stuck(self) -> list[FileId]:
        """Inodes that the replica, or a read, refused the last time."""
        return list(self._retry)

    def oldest(self) -> int | None:
        """The time of the oldest change that is not durable on the replica."""
        times = [owed.since for owed in self.table.values()]
        times += [flush.owed.since for flush in self._reading.values()]
        times += [due.since for queue in (self._slots, self._dead) for _, due in queue.values()]
        times += [since for epoch in self.inflight for since in epoch.sinces()]
        looked = self.resolver.oldest()
        return min(times if looked is None else [*times, looked], default=None)

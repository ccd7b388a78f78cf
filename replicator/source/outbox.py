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
from collections.abc import Callable, Iterator
from itertools import islice

from replicator.dirty.generations import Generations
from replicator.dirty.outsiders import MappedOutsiders
from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import DirtyTable, Owed
from replicator.dirty.writers import Writers
from replicator.model import END_OF_FILE, Answer, Facts, FileId, InodeFact, Slot, SlotFact
from replicator.source.flight import Epoch, Flush, Part
from replicator.source.naming import Naming
from replicator.source.pace import Pace
from replicator.tree.exclude import Exclude
from replicator.tree.index import TreeIndex
from replicator.tree.resolver import Changes, Due, Resolver

EPOCH_BYTES = 8 << 20
EPOCH_INODES = 2000
EPOCH_SLOTS = 20_000
KNOWN_SIZES = 1 << 16

Payload = list[tuple[int, int, bytes]]
"""(index into the facts' inodes, offset in the file, bytes)."""


class Outbox:
    """The sender's state, driven by its loop. Times are CLOCK_MONOTONIC in ns."""

    def __init__(
        self,
        root: FileId,
        exclude: Exclude,
        clock: Callable[[], int] = time.time_ns,
        writers: Writers | None = None,
    ) -> None:
        """`clock`: ns since the epoch, as the kernel's for ctime. `writers` know names; without them none is known."""
        self._clock = clock
        self.generations = Generations()
        self.table = DirtyTable(self.generations)
        self.outsiders = MappedOutsiders()
        self.writers = writers or Writers()
        self.index = TreeIndex(root)
        self.resolver = Resolver(self.index, exclude, self.generations)
        self.inflight: deque[Epoch] = deque()
        self.checking = False
        """New members are offered to the receiver for comparison before their bytes are sent."""
        self.calming = False
        """Whether `next_reads` passed over something that will be ready in a moment."""
        self.sought: dict[FileId, None] = {}
        """Directories that finished reads wait for, and that are not being read yet."""
        self.unlisted: dict[FileId, Due] = {}
        """Directories whose names must be compared with the replica's."""
        self._number = 0
        self._unshipped: dict[FileId, None] = {}
        self._reading: dict[FileId, Flush] = {}
        self._more: deque[Flush] = deque()
        self._parts: deque[Part] = deque()
        self._told: OrderedDict[FileId, int] = OrderedDict()  # when each was last read, in that order
        self._naming = Naming(self.generations)
        self.pace = Pace()
        self._sizes: OrderedDict[FileId, int] = OrderedDict()

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
        for slot, due in changes.slots:
            due.looked = looked
            self._naming.queue(slot, due)
        for id, due in changes.dead:
            self._forget(id)
            self._naming.queue_dead(id, due)

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
            self._naming.queue_dead(id, Due(self.generations.hold(), now))

    def _is_dying(self, id: FileId) -> bool:
        return self._naming.is_dying(id) or any(id in epoch.dead for epoch in self.inflight)

    def gone(self, flush: Flush) -> None:
        """A read found that the inode does not exist any more: its names will tell, nothing is owed for it."""
        if self.current(flush):
            del self._reading[flush.owed.id]
            self.generations.release(flush.owed.generation)
            self._naming.release(flush.owed.id)

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
        self.pace.defer(flush.owed.id, now)
        self.table.fold(flush.owed)

    def _owe_new(self, id: FileId, since: int, generation: int | None) -> None:
        self._naming.resume(id)  # it does not die after all
        owed = self.table.mark(id, since, generation)
        owed.mapped |= self.outsiders.take(id)
        owed.share.update(self.writers.welcome(id))
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
        self._told.pop(id, None)
        self.pace.forget(id)
        due = self.unlisted.pop(id, None)
        if due is not None:
            self.generations.release(due.generation)
        self._naming.release(id)

    # ------------------------------------------------------------------ reads

    def next_reads(self, now: int, items: int, big: int = 1 << 20, big_items: int = 2, calm: int = 0) -> list[Flush]:
        """Up to `items` flushes to read (a slice of), small ones before those of more than `big` bytes.

        What was told before its effect (a clone, a punched hole) is often told in many steps of one call: such an inode
        is left alone until `calm` ns have passed since the last of them, or ten times that since the first.
        """
        for id in [id for id in self._naming.deferred if self.pace.may_try(id, now)]:
            self._naming.resume(id)
        # Parts that wait for a directory are in the way of others, and it must not wait for room in its turn.
        chosen = [self._begin(id) for id in self.sought if self._may_begin(id) and self.pace.may_try(id, now)]
        self.sought.clear()
        items += len(chosen)
        bulky = [self._more.popleft() for _ in range(min(len(self._more), big_items))]
        room = big_items - len(bulky)
        late: list[FileId] = []
        self.calming = False
        for id in self._eligible(now, items * 4):
            if len(chosen) >= items:
                break
            owed = self.table.get(id)
            if owed is not None and now - owed.begun < calm and now - owed.since < 10 * calm:
                self.calming = True
                continue
            if owed is not None and owed.ranges.total > big and not owed.whole:
                late.append(id)
                continue
            chosen.append(self._begin(id))
        chosen += [self._begin(id) for id in late[: max(0, room)]]
        return chosen + bulky

    def _eligible(self, now: int, most: int) -> list[FileId]:
        result = []
        for id in self.table:
            if id in self._reading or not self.pace.may_try(id, now):
                continue
            result.append(id)
            if len(result) >= most:
                break
        return result

    def _begin(self, id: FileId) -> Flush:
        owed = self.table.take(id)
        if owed.check and owed.touched:
            owed.check = False
            owed.mark_whole()
        flush = self._reading[id] = Flush(owed, self._sizes.get(id), taken=self._clock(), fence=self.table.fence)
        return flush

    def read_done(self, part: Part, now: int) -> None:
        """A slice was read. If its fact is partial, the flush's `left` and `size` tell the next one where to go on."""
        self._told[part.flush.owed.id] = now
        self._told.move_to_end(part.flush.owed.id)
        if not self.index.is_member(part.flush.owed.id):
            self.gone(part.flush)
        elif self.current(part.flush):
            flush, all_read = part.flush, not part.fact.partial
            self.table.seen(
                flush.owed, part.waited, part.read, part.sent, flush.size, all_read=all_read, fence=flush.fence
            )
            self._parts.append(part)

    def next_try(self, after: int) -> int | None:
        """When, after `after`, the first of what is held off may be tried again."""
        return self.pace.next_due(after, self.table, self._naming.deferred)

    @property
    def reading(self) -> int:
        """Flushes begun and not yet composed to their end."""
        return len(self._reading)

    @property
    def readable(self) -> bool:
        """Whether something may be read however much is out: a slice of a begun flush, or what others wait for."""
        return bool(self._more) or any(not self.pace.holds(id) for id in self.sought)

    # ------------------------------------------------------------------ epochs

    def compose(self) -> tuple[Facts, Payload] | None:
        """The next epoch, or None when nothing is ready. It is in flight from here on."""
        epoch = Epoch(self._number + 1)
        inodes: list[InodeFact] = []
        payload: Payload = []
        size = 0
        early: list[Part] = []
        while self._parts and size < EPOCH_BYTES and len(inodes) < EPOCH_INODES:
            part = self._parts.popleft()
            id = part.flush.owed.id
            if not self.index.is_member(id):
                self.gone(part.flush)
                continue
            if part.fact.check and (lacking := self._lacking(id)):
                early.append(part)  # its names must go along, for a replica's file is adopted by name
                self.sought.update(dict.fromkeys(filter(self._may_begin, lacking)))
                continue
            payload += [(len(inodes), offset, data) for offset, data in part.data]
            size += sum(len(data) for _, data in part.data)
            inodes.append(part.fact)
            if part.fact.partial:
                self._more.append(part.flush)
            else:
                self._complete(id, part, epoch)
        self._parts.extendleft(reversed(early))
        slots = self._take_slots(epoch)
        dead = self._take_dead(epoch)
        if not (inodes or slots or dead):
            return None
        self._number += 1
        epoch.bytes = size
        self.inflight.append(epoch)
        return Facts(epoch.number, tuple(slots), tuple(inodes), tuple(dead)), payload

    def _lacking(self, id: FileId) -> list[FileId]:
        return [slot.parent for slot in self.index.slots_of(id) if slot.parent in self._unshipped]

    def _may_begin(self, id: FileId) -> bool:
        return id in self.table and id not in self._reading

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
            self.pace.unsettled(id, part.flush.taken)
        self._naming.release(id)

    def _take_slots(self, epoch: Epoch) -> list[SlotFact]:
        facts: list[SlotFact] = []
        for slot, due in self._naming.take(self._blocker, EPOCH_SLOTS).items():
            if self.index.is_member(slot.parent):
                epoch.slots[slot] = due
                facts.append(SlotFact(slot, self.index.get(slot)))
            else:
                self.generations.release(due.generation)
        return facts

    def _blocker(self, slot: Slot, due: Due) -> FileId | None:
        """Whose content must be told before this slot can be."""
        if not self.index.is_member(slot.parent):
            return None
        target = self.index.get(slot)
        for id in (slot.parent, target):
            if id is not None and id in self._unshipped:
                return id
        # A name must not show bytes from before it was given (write, then rename), nor may the old name go first.
        for id in (target, due.before):
            if id is not None and self.index.is_member(id) and self._owed_since(id) <= due.looked:
                return id
        return None

    def _owed_since(self, id: FileId) -> int:
        """The time of the oldest change of a file's bytes that was not composed; far away if there is none."""
        flush, owed = self._reading.get(id), self.table.get(id)
        times = [each.since for each in (flush.owed if flush else None, owed) if each is not None and each.touched]
        return min(times, default=END_OF_FILE)

    def _take_dead(self, epoch: Epoch) -> list[FileId]:
        for id, due in self._naming.take_dead(EPOCH_SLOTS).items():
            if self.index.is_member(id):
                self.generations.release(due.generation)
            else:
                epoch.dead[id] = due
        return list(epoch.dead)

    # ------------------------------------------------------------------ what the receiver says

    def applied(self, answer: Answer, now: int) -> list[int]:
        """An epoch is visible on the replica; returns the ages, in ns, of what it completed."""
        epoch = next((epoch for epoch in self.inflight if epoch.number == answer.epoch), None)
        if epoch is None or epoch.applied:
            return []
        epoch.applied = True
        refused = {refusal.id for refusal in answer.refusals}
        oldest = min(epoch.sinces(), default=now)
        generation = min(epoch.tokens(), default=None)
        for id in dict.fromkeys((*answer.needs, *refused)):
            if id in refused:
                self.pace.defer(id, now)
            elif not any(id in later.whole for later in self.inflight if later.number > epoch.number):
                self.pace.succeeded(id)
            else:
                continue  # it is on its way already
            self._owe_whole(id, oldest, generation)
            if id in refused and not self.index.is_member(id):
                self._naming.defer(id)
        for slot in answer.looks:
            self.resolver.look(slot, oldest, generation, force=True)
        for flush in epoch.flushes:
            if flush.owed.id not in refused:
                self.pace.succeeded(flush.owed.id)
        for id in epoch.dead:
            if id not in refused:
                self.pace.succeeded(id)
        return [now - since for since in epoch.sinces()]

    def durable(self, number: int, now: int) -> list[int]:
        """Epochs up to `number` survive a power cut on the replica; returns the ages of what they completed."""
        ages: list[int] = []
        while self.inflight and self.inflight[0].number <= number:
            epoch = self.inflight.popleft()
            ages += [now - since for since in epoch.sinces()]
            for generation in epoch.tokens():
                self.generations.release(generation)
        return ages

    def disconnected(self) -> None:
        """The connection is lost: all that is not durable is owed again."""
        self._parts.clear()
        self.sought.clear()
        self._more.clear()
        for epoch in self.inflight:
            for flush in epoch.flushes:
                self._unlearn_size(flush)
                self._fold(flush.owed)
            for slot, due in epoch.slots.items():
                self._naming.queue(slot, due)
            for id, due in epoch.dead.items():
                self._naming.queue_dead(id, due)
        self.inflight.clear()
        for flush in list(self._reading.values()):
            self._fold(flush.owed)
        self._reading.clear()
        self.pace.retry_all()
        self._naming.deferred.clear()

    def compare_all(self, now: int, lost_since: int | None = None) -> None:
        """The replica is not what it was believed to be: offer everything for comparison.

        `lost_since`: changes from then on may have been missed. What was read since may have carried the times of such
        a change without its bytes, and would look the same: it is owed as a whole.
        """
        self._sizes.clear()
        for id in self.index.subtree(self.index.root):
            owed = self.table.mark(id, now)
            owed.check = True
            if lost_since is not None and (id in self._reading or self._told.get(id, lost_since - 1) >= lost_since):
                owed.mark_whole()
            self._unshipped[id] = None
            for slot in self.index.slots_of(id):
                self._naming.queue(slot, Due(self.generations.hold(), now))

    def forget_told(self, before: int) -> None:
        """No change from `before` on, or later, was missed: what was read earlier told all."""
        while self._told and next(iter(self._told.values())) < before:
            self._told.popitem(last=False)

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
            self._naming.queue_dead(id, Due(self.generations.hold(generation), since))
            return
        self.table.mark(id, since, generation).mark_whole()
        self._sizes.pop(id, None)
        self._unshipped[id] = None
        slots = list(self.index.slots_of(id))
        if self.index.is_directory(id):
            slots += [Slot(id, name) for name in self.index.children(id)]
        for slot in slots:
            self._naming.queue(slot, Due(self.generations.hold(generation), since))

    def settle(self, now: int, after: int = 5_000_000_000, most: int = 1000) -> None:
        """Tell the replica once more about up to `most` inodes that have been quiet for `after` ns.

        Now their ctime proves that nothing changed since, so that a later comparison need not send them again.
        """
        for id in self.pace.quiet(self._clock() - after, most):
            if self.index.is_member(id) and id not in self.table and id not in self._reading:
                self.table.mark(id, now)

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
            total += self.extent(owed) or 0
        if counted:
            total = total * len(self.table) // counted
        return total + sum(epoch.bytes for epoch in self.inflight)

    def extent(self, owed: Owed) -> int | None:
        """How many bytes it owes; None if they reach to the end of a file whose size is not known."""
        total = 0
        for ranges in (owed.ranges, owed.folios):
            end = ranges.end
            if end == END_OF_FILE:
                size = self._sizes.get(owed.id)
                if size is None:
                    return None
                end = min(end, size)
            total += ranges.within(end).total
        return total

    def leaving(self) -> Iterator[Owed]:
        """What is owed and not in the table any more: it is being read, or is in an epoch that is not durable."""
        yield from (flush.owed for flush in self._reading.values())
        yield from (flush.owed for epoch in self.inflight for flush in epoch.flushes)

    def oldest(self) -> int | None:
        """The time of the oldest change that is not durable on the replica."""
        times = [owed.since for owed in self.table.values()]
        times += [flush.owed.since for flush in self._reading.values()]
        times += [due.since for due in self._naming.dues()]
        times += [since for epoch in self.inflight for since in epoch.sinces()]
        looked = self.resolver.oldest()
        return min(times if looked is None else [*times, looked], default=None)

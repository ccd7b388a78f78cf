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
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from replicator.capture.names import ListLook, SlotLook
from replicator.dirty.generations import Generations
from replicator.dirty.outsiders import MappedOutsiders
from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import DirtyTable, Owed
from replicator.dirty.writers import Writers
from replicator.errors import RemoteError
from replicator.journal.marks import Doubt, Mark, Partial, Whole
from replicator.model import END_OF_FILE, Answer, Facts, FileId, InodeFact, Kind, Refusal, Slot, SlotFact
from replicator.source.clock import WallClock
from replicator.source.doubts import Doubts
from replicator.source.flight import SETTLED_AFTER, Epoch, Flush, Part
from replicator.source.held import HeldDeletions
from replicator.source.naming import Naming
from replicator.source.pace import Pace
from replicator.tree.exclude import Exclude
from replicator.tree.index import TreeIndex
from replicator.tree.resolver import Changes, Due, Resolver
from replicator.tree.stamps import Stamp
from replicator.tree.store import Told

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
        steady: Callable[[], int] = time.monotonic_ns,
        writers: Writers | None = None,
        index: TreeIndex | None = None,
        last_epoch: int = 0,
        max_delete: int | None = None,
    ) -> None:
        """`clock`: ns since the epoch, as the kernel's for ctime; `steady`: ns of one that is never set. `writers` know
        names; without them none is known. `max_delete`: see deletions.py.

        `index` is what a predecessor knew, `last_epoch` the last one that it may have sent.
        """
        self._clock = WallClock(clock, steady, SETTLED_AFTER)
        self.generations = Generations()
        self.table = DirtyTable(self.generations)
        self.outsiders = MappedOutsiders()
        self.writers = writers or Writers()
        self.index = index or TreeIndex(root)
        self.resolver = Resolver(self.index, exclude, self.generations)
        self.inflight: deque[Epoch] = deque()
        self.checking = False
        """New members are offered to the receiver for comparison before their bytes are sent."""
        self.succeeding = False
        """A predecessor may have told the replica of directories that the index does not have."""
        self.calming = False
        """Whether `next_reads` passed over something that will be ready in a moment."""
        self.sought: dict[FileId, None] = {}
        """Directories that finished reads wait for, and that are not being read yet."""
        self.unlisted: dict[FileId, Due] = {}
        """Directories whose names must be compared with the replica's."""
        self.doubting = False
        """Whether a survey is to find changes that nobody told of."""
        self.told: list[Told] = []
        """What the replica durably has and the index has not been told yet, in order."""
        self._number = last_epoch
        self._unshipped: dict[FileId, None] = {}
        self._reading: dict[FileId, Flush] = {}
        self._more: deque[Flush] = deque()
        self._parts: deque[Part] = deque()
        self._told: OrderedDict[FileId, int] = OrderedDict()  # when each was last read, in that order
        self._naming = Naming(self.generations)
        self.doubts = Doubts()
        self._later: dict[Slot, tuple[int, Due]] = {}
        """Slots of epochs of which something was refused, and when to deal with them again."""
        self.pace = Pace()
        self.deletions = HeldDeletions(max_delete, self.index, self._naming, self.generations)
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
            if self.index.is_directory(id) and (self.checking or self.succeeding or self._is_dying(id)):
                self.compare_names(id, due.since, due.generation)
        for slot, due in changes.slots:
            self.table.touch(slot.parent)
            due.looked = looked
            self._naming.queue(slot, due)
            self.deletions.seen(slot)
        self.deletions.dead(changes, looked)
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

    def take_unlisted(self, most: int, now: int, patience: int = 1_000_000_000) -> dict[FileId, Due]:
        """Directories, known to the replica by now, whose names are to be compared with it; with their tokens.

        One of which a name is still to be told would differ in vain: it is left, for `patience` ns at most.
        """
        if not self.unlisted:
            return {}
        busy = self._with_owed_names()
        known = [
            id
            for id, due in self.unlisted.items()
            if id not in self._unshipped and (id not in busy or now - due.since > patience)
        ]
        return {id: self.unlisted.pop(id) for id in known[:most]}

    def _with_owed_names(self) -> set[FileId]:
        """Directories of which a name is to be looked at, or to be told."""
        slots = (*self._naming.slots(), *self.resolver.slots(), *self._later)
        return {*(slot.parent for slot in slots), *self.resolver.lists()}

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
        self.deletions.spare(id)
        owed = self.table.mark(id, since, generation)
        owed.mapped |= self.outsiders.take(id)
        owed.share.update(self.writers.welcome(id))
        if self.checking:
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
        doubt = self.doubts.remove(id)
        if doubt is not None:
            self.generations.release(doubt.generation)
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
        self._retry_slots(now)
        # Parts that wait for a directory are in the way of others, and it must not wait for room in its turn.
        chosen = [self._begin(id, now) for id in self.sought if self._may_begin(id) and self.pace.may_try(id, now)]
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
            chosen.append(self._begin(id, now))
        chosen += [self._begin(id, now) for id in late[: max(0, room)]]
        return chosen + bulky

    def _eligible(self, now: int, most: int) -> list[FileId]:
        result = []
        for id in self.table:
            if id in self._reading or id in self.doubts or not self.pace.may_try(id, now):
                continue
            result.append(id)
            if len(result) >= most:
                break
        return result

    def _begin(self, id: FileId, now: int) -> Flush:
        owed = self.table.ask_first(self.table.take(id))
        known = self._sizes.get(id)
        if known is None and not (owed.whole or owed.check):
            known = self.index.size(id)
        taken = self._clock()
        flush = Flush(owed, known, taken=taken, even=self._clock.even, begun=now, fence=self.table.fence)
        self._reading[id] = flush
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
        times = [when for when, _ in self._later.values() if when > after]
        first = self.pace.next_due(after, self.table, self._naming.deferred)
        return min(times if first is None else [*times, first], default=None)

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
        return id in self.table and id not in self._reading and id not in self.doubts

    def _complete(self, id: FileId, part: Part, epoch: Epoch) -> None:
        self._reading.pop(id, None)
        self._unshipped.pop(id, None)
        epoch.flushes.append(part.flush)
        fact = part.fact
        sure = fact.settled and not part.flush.owed.mapped
        epoch.told.stamps[id] = Stamp(fact.size, fact.attributes.mtime_ns, fact.attributes.ctime_ns, sure)
        if part.flush.owed.whole:
            epoch.whole.add(id)
        if part.fact.check and part.fact.kind is Kind.FILE:
            epoch.asked.add(id)
            self.doubts.ask(id, epoch.number)
        self._sizes[id] = part.fact.size
        self._sizes.move_to_end(id)
        if len(self._sizes) > KNOWN_SIZES:
            self._sizes.popitem(last=False)
        if not part.fact.settled and not part.flush.owed.mapped:
            self.pace.unsettled(id, part.flush.begun)
        self._naming.release(id)

    def _take_slots(self, epoch: Epoch) -> list[SlotFact]:
        facts: list[SlotFact] = []
        for slot, due in self._naming.take(self._blocker, EPOCH_SLOTS).items():
            if self.index.is_member(slot.parent):
                epoch.slots[slot] = due
                id = self.index.get(slot)
                epoch.told.slots[slot] = None if id is None else (id, self.index.kind(id))
                facts.append(SlotFact(slot, id))
            else:
                self.generations.release(due.generation)
        return facts

    def _blocker(self, slot: Slot, due: Due) -> FileId | None:
        """Whose content must be told before this slot can be."""
        if not self.index.is_member(slot.parent):
            return None
        target = self.index.get(slot)
        if target is None and due.before is not None and self.deletions.undecided(due.before):
            return due.before
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
        if id in self.doubts:
            return END_OF_FILE  # what the replica has is in doubt under its present name as under the next
        flush, owed = self._reading.get(id), self.table.get(id)
        times = [each.since for each in (flush.owed if flush else None, owed) if each is not None and each.touched]
        return min(times, default=END_OF_FILE)

    def _take_dead(self, epoch: Epoch) -> list[FileId]:
        for id, due in self._naming.take_dead(EPOCH_SLOTS, self.deletions).items():
            if self.index.is_member(id):
                self.generations.release(due.generation)
            else:
                epoch.dead[id] = due
        epoch.told.dead = list(epoch.dead)
        return epoch.told.dead

    # ------------------------------------------------------------------ what the receiver says

    def applied(self, answer: Answer, now: int) -> list[int]:
        """An epoch is visible on the replica; returns the ages, in ns, of what it completed."""
        epoch = next((epoch for epoch in self.inflight if epoch.number == answer.epoch), None)
        if epoch is None or epoch.applied:
            return []
        epoch.applied = True
        checked = {flush.owed.id: flush for flush in epoch.flushes if self.doubts.answered(flush.owed.id, epoch.number)}
        refused = {refusal.id for refusal in answer.refusals}
        for id in (*answer.needs, *answer.doubts, *refused):  # the replica has not got it, whatever it was told
            epoch.told.stamps[id] = Stamp(0, 0, 0, sure=False)
        for slot in answer.looks:
            epoch.told.slots.pop(slot, None)
        epoch.told.dead = [id for id in epoch.told.dead if id not in refused]
        oldest = min(epoch.sinces(), default=now)
        generation = min(epoch.tokens(), default=None)
        for id in dict.fromkeys((*answer.needs, *refused)):
            if id in refused:
                self.pace.defer(id, now)
                self._abandon(id)
            elif any(id in later.whole for later in self.inflight if later.number > epoch.number):
                continue  # it is on its way already
            self._owe_whole(id, oldest, generation)
            if id in refused and not self.index.is_member(id):
                self._naming.defer(id)
        for id in dict.fromkeys(answer.doubts):
            if id not in epoch.asked:
                raise RemoteError(f"the replica doubts {id.text()}, of which epoch {epoch.number} did not ask")
            if id in checked and id not in answer.needs and id not in refused:
                self._doubt(checked[id].owed)
        retry = max((self.pace.due(id) for id in refused), default=0)
        for slot in answer.looks:
            if refused:
                self._again(slot, epoch.slots.get(slot), Due(self.generations.hold(generation), oldest), retry)
            else:
                self.resolver.look(slot, oldest, generation, force=True)
        for flush in epoch.flushes:
            if flush.owed.id not in refused:
                self.pace.succeeded(flush.owed.id)
        for id in epoch.dead:
            if id not in refused:
                self.pace.succeeded(id)
        return [now - since for since in epoch.sinces()]

    def _doubt(self, asked: Owed) -> None:
        """Have a file compared block by block."""
        if self.index.is_member(asked.id):
            self._sizes.pop(asked.id, None)
            generation = self.generations.hold(asked.generation)
            self.doubts.add(Owed(asked.id, generation, asked.since, deep=True, mapped=asked.mapped))

    def compared(self, owed: Owed, differ: RangeSet, size: int) -> None:
        """The comparison of a file is over: `differ` are the ranges of its first `size` bytes that the replica has not.

        They are owed, and in any case a fact that the content is right now.
        """
        if self.doubts.is_compared(owed):
            self.doubts.remove(owed.id)
            owed.deep = False
            owed.ranges.update(differ)
            owed.holes = True
            self._sizes[owed.id] = size
            self.table.fold(owed)

    def not_compared(self, owed: Owed, now: int, *, whole: bool = False) -> None:
        """A file could not be compared: it is tried again, or (`whole`) sent, after a pause."""
        if self.doubts.is_compared(owed):
            self.doubts.remove(owed.id)
            self.pace.defer(owed.id, now)
            if whole:
                owed.deep = False
                owed.mark_whole()
            self._fold(owed)

    def gone_while_compared(self, owed: Owed) -> None:
        """It does not exist any more: its names will tell."""
        if self.doubts.is_compared(owed):
            self.doubts.remove(owed.id)
            self.generations.release(owed.generation)

    def _again(self, slot: Slot, told: Due | None, due: Due, when: int) -> None:
        """Deal once more, at `when`, with a slot of an epoch of which something was refused.

        What that epoch told of it is told again, and then not without what it waited for: an old name must not go
        before the new one is there. Otherwise it is looked at.
        """
        if told is None:
            due.force = True
        else:
            due.looked, due.before = told.looked, told.before
        if slot in self._later:
            self.generations.release(self._later.pop(slot)[1].generation)
        self._later[slot] = (when, due)

    def _retry_slots(self, now: int) -> None:
        for slot in [slot for slot, (when, _) in self._later.items() if when <= now]:
            _, due = self._later.pop(slot)
            if due.force:
                self.resolver.look(slot, due.since, due.generation, force=True)
                self.generations.release(due.generation)
            else:
                self._naming.queue(slot, due)

    def _abandon(self, id: FileId) -> None:
        """Further slices of what was refused would be in vain."""
        flush = self._reading.pop(id, None)
        if flush is not None:
            self._parts = deque(part for part in self._parts if part.flush is not flush)
            self._more = deque(other for other in self._more if other is not flush)
            self._fold(flush.owed)

    def lost(self, refusals: Iterable[Refusal], number: int, now: int) -> None:
        """What the replica could not keep of epochs up to `number`, just before those are called durable."""
        epochs = [epoch for epoch in self.inflight if epoch.number <= number]
        oldest = min((since for epoch in epochs for since in epoch.sinces()), default=now)
        generation = min((token for epoch in epochs for token in epoch.tokens()), default=None)
        for refusal in refusals:
            for epoch in epochs:
                if refusal.id in epoch.told.stamps:
                    epoch.told.stamps[refusal.id] = Stamp(0, 0, 0, sure=False)
            self.pace.defer(refusal.id, now)
            self._owe_whole(refusal.id, oldest, generation)

    def durable(self, number: int, now: int) -> list[int]:
        """Epochs up to `number` survive a power cut on the replica; returns the ages of what they completed."""
        ages: list[int] = []
        while self.inflight and self.inflight[0].number <= number:
            epoch = self.inflight.popleft()
            ages += [now - since for since in epoch.sinces()]
            if epoch.told:
                self.told.append(epoch.told)
            for generation in epoch.tokens():
                self.generations.release(generation)
        return ages

    def take_told(self, now: int) -> list[Told]:
        """`told`, to be written to the index. A stamp vouches for all that it may hide, else it is none.

        It may hide what is owed besides, what a survey is to find, and of a directory the names that are owed.
        """
        told, self.told = self.told, []
        busy: set[FileId] | None = None
        for one in told:
            for id, stamp in one.stamps.items():
                if stamp is None or not stamp.sure:
                    continue
                if id in self.table or id in self._reading or id in self.doubts:
                    one.stamps[id] = stamp._replace(sure=False)
                    continue
                if self.index.is_directory(id) and not self.doubting:
                    if busy is None:
                        busy = self._with_owed_names()
                    if id not in busy and not self.index.pending(id):
                        continue
                elif not self.doubting:
                    continue
                one.stamps[id] = stamp._replace(sure=False)
                self.pace.unsettled(id, now)
        return told

    def names_on_their_way(self) -> set[Slot]:
        """Slots that were told and are not in what `take_told` gave."""
        tolds = (*self.told, *(epoch.told for epoch in self.inflight))
        return {slot for told in tolds for slot in told.slots}

    def owed(self) -> Iterator[Mark]:
        """Everything that is not durable, for the journal.

        But for deaths: who is to die has lost its names, and a successor asks the replica who has none.
        """
        for owed in (*self.table.values(), *self.leaving()):
            if owed.whole:
                yield Whole(owed.id)
            else:
                if owed.deep:
                    yield Doubt(owed.id)
                ranges, folios = tuple(owed.ranges), tuple(owed.folios)
                yield Partial(owed.id, ranges, folios, owed.lowest, owed.mapped, owed.holes, owed.check)
        flying = [slot for epoch in self.inflight for slot in epoch.slots]
        queued = (*self._naming.slots(), *self.resolver.slots(), *self._later)
        yield from (SlotLook(slot, None) for slot in (*queued, *flying))
        extra = (slot.parent for slot in self.deletions.extra())
        yield from (ListLook(id) for id in dict.fromkeys((*self.resolver.lists(), *self.unlisted, *extra)))

    def restore(self, mark: Whole | Doubt | Partial, now: int) -> None:
        """Owe what a predecessor owed. Who is no member yet becomes one by its name, or the replica asks about it."""
        if not self.index.is_member(mark.id):
            return
        if isinstance(mark, Whole):  # if it has got it meanwhile, it need not travel again
            self.offer(mark.id, now, None)
            self.doubt(mark.id, now)
        elif isinstance(mark, Doubt):
            self.doubt(mark.id, now)
        else:
            owed = self.table.mark(mark.id, now)
            owed.mapped |= mark.mapped
            owed.holes |= mark.holes
            owed.check |= mark.check
            owed.ranges.update(RangeSet(mark.ranges))
            owed.folios.update(RangeSet(mark.folios))
            if mark.lowest is not None:
                owed.lower(mark.lowest)

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
        for owed in self.doubts.clear():
            self._fold(owed)
        self.pace.retry_all()
        self._naming.deferred.clear()
        self._later = {slot: (0, due) for slot, (_, due) in self._later.items()}

    def offer(self, id: FileId, now: int, generation: int | None) -> None:
        """The replica may not have this member, or another state of it: offer it, with its names, for comparison."""
        if not self.index.is_member(id):
            return
        self.table.mark(id, now, generation).check = True
        self._sizes.pop(id, None)
        self._unshipped[id] = None
        for slot in self.index.slots_of(id):
            self._naming.queue(slot, Due(self.generations.hold(generation), now))

    def suspect(
        self, id: FileId, now: int, generation: int | None, *, content: bool = True, numbers: bool = False
    ) -> None:
        """A member may have changed without a word: owe all that may differ from the replica, names too.

        Without `content`, what is in a file has not changed without a word. `numbers`: see Resolver.list.
        """
        if not self.index.is_member(id):
            return
        owed = self.table.mark(id, now, generation)
        if content:
            owed.deep = True
            self._sizes.pop(id, None)
        if self.index.is_directory(id):
            self.resolver.list(id, now, generation, numbers=numbers)
            self.compare_names(id, now, generation)

    def missed(self, id: FileId, now: int, generation: int | None) -> None:
        """There is no such inode (any more)."""
        if not self.index.is_member(id) or id == self.index.root:
            return
        slots = self.index.slots_of(id)
        for slot in slots:
            self.resolver.look(slot, now, generation)
        if not slots:
            self.resolver.doubt(id, now)

    def doubtful(self, since: int) -> list[FileId]:
        """Whose content was read since then, or is about to be.

        If changes were missed from then on, that carries their times without their bytes: its stamp proves nothing.
        """
        told = (id for id, when in self._told.items() if when >= since)
        return list(dict.fromkeys((*self.table, *self._reading, *self.doubts, *told)))

    def distrust(self, ids: Sequence[FileId], now: int, *, content: bool) -> None:
        """As `suspect`, of what the replica was told lately: their stamps count no more."""
        for id in ids:
            self.suspect(id, now, None, content=content)
        self.told.append(Told(stamps=dict.fromkeys(ids)))
        for epoch in self.inflight:
            for id in epoch.told.stamps.keys() & set(ids):
                stamp = epoch.told.stamps[id]
                epoch.told.stamps[id] = stamp and stamp._replace(sure=False)

    def owe_whole(self, id: FileId, now: int) -> None:
        """The replica lacks this inode: send it with all its names."""
        self._owe_whole(id, now, None)

    def doubt(self, id: FileId, now: int) -> None:
        """The content that the replica has of this inode is in doubt: compare it."""
        self.table.mark(id, now).deep = True

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
        if owed.whole or owed.check or owed.deep:
            self._unshipped[owed.id] = None
        self.table.fold(owed)

    def _owe_whole(self, id: FileId, since: int, generation: int | None) -> None:
        if not self.index.is_member(id):
            self._naming.queue_dead(id, Due(self.generations.hold(generation), since))
            return
        self.table.mark(id, since, generation).mark_whole()
        doubt = self.doubts.remove(id)
        if doubt is not None:
            self.table.fold(doubt)
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
        if not self.resolver.pending:
            for slot, due in self.deletions.settle(now).items():
                self.resolver.look(slot, due.since, due.generation, force=True)
                self.generations.release(due.generation)
        for id in self.pace.quiet(now - after, most):
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
        yield from self.doubts.owed()
        yield from (flush.owed for epoch in self.inflight for flush in epoch.flushes)

    def oldest(self) -> int | None:
        """The time of the oldest change that is not durable on the replica."""
        times = [owed.since for owed in self.table.values()]
        times += [flush.owed.since for flush in self._reading.values()]
        times += [owed.since for owed in self.doubts.owed()]
        times += [due.since for due in self._naming.dues()]
        times += [due.since for _, due in self._later.values()]
        times += [since for epoch in self.inflight for since in epoch.sinces()]
        looked = self.resolver.oldest()
        return min(times if looked is None else [*times, looked], default=None)

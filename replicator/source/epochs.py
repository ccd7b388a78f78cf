"""Epochs: put together, and in flight until they are durable.

Takes parts that were read, names and deaths that are owed; gives the next epoch, in an order that the replica can
follow (docs/architecture.md, "The epoch"). What an epoch carried stays in `inflight` until the outbox hears that it is
durable, or that the connection is lost. Pure.
"""

from __future__ import annotations

from collections import deque

from replicator.model import END_OF_FILE, Facts, FileId, InodeFact, Kind, Slot, SlotFact
from replicator.source.debts import Debts
from replicator.source.flight import Epoch, Part
from replicator.source.held import HeldDeletions
from replicator.source.reads import Reads
from replicator.source.traffic import EPOCH_BYTES, is_bulk
from replicator.tree.resolver import Due
from replicator.tree.stamps import Stamp

EPOCH_INODES = 2000
EPOCH_SLOTS = 20_000

Payload = list[tuple[int, int, bytes]]
"""(index into the facts' inodes, offset in the file, bytes)."""


class Epochs:
    """Of one outbox."""

    def __init__(self, debts: Debts, reads: Reads, deletions: HeldDeletions, last: int = 0) -> None:
        """`last`: the last one that a predecessor may have sent."""
        self._debts = debts
        self._reads = reads
        self._deletions = deletions
        self.last = last
        """The number of the last epoch that was composed."""
        self.inflight: deque[Epoch] = deque()
        """Composed and not durable, by number."""
        self._passed = False  # whether small parts went before bulk that had room

    def compose(
        self, bulk: int = EPOCH_BYTES, *, small: bool = True, apart: bool = False
    ) -> tuple[Facts, Payload] | None:
        """The next epoch, or None when nothing is ready. It is in flight from here on.

        It may carry about so many bytes of `bulk`, and `small` parts, which go first. `apart`: not both in one.
        """
        epoch = Epoch(self.last + 1)
        chosen = self._choose(bulk, small=small, apart=apart)
        if not small and not chosen:
            return None
        inodes: list[InodeFact] = []
        payload: Payload = []
        early: list[Part] = []
        for part in chosen:
            if not self._debts.index.is_member(part.flush.owed.id):
                self._reads.gone(part.flush)
                continue
            if part.fact.check and (lacking := self._lacking(part.flush.owed.id)):
                early.append(part)  # its names must go along, for a replica's file is adopted by name
                self._reads.seek(lacking)
                continue
            payload += [(len(inodes), offset, data) for offset, data in part.data]
            epoch.bytes += part.size
            epoch.bulk += part.size if is_bulk(part) else 0
            inodes.append(part.fact)
            if part.fact.partial:
                self._reads.go_on(part.flush)
            else:
                self._complete(part, epoch)
        self._reads.parts.extendleft(reversed(early))
        slots = self._take_slots(epoch)
        dead = self._take_dead(epoch)
        if not (inodes or slots or dead):
            return None
        self.last += 1
        self.inflight.append(epoch)
        return Facts(epoch.number, tuple(slots), tuple(inodes), tuple(dead)), payload

    def _choose(self, bulk: int, *, small: bool, apart: bool) -> list[Part]:
        """Take parts out of those that were read, in their order but for bulk, which comes last."""
        parts = self._reads.parts
        big = [part for part in parts if is_bulk(part)] if bulk else []
        few = [part for part in parts if not is_bulk(part)] if small else []
        if apart and few and big:
            self._passed = not self._passed  # in turns: whatever comes without an end, the other goes on
            few, big = (few, []) if self._passed else ([], big)
        chosen = _within(few, EPOCH_BYTES, EPOCH_INODES)
        chosen += _within(big, bulk, EPOCH_INODES - len(chosen))
        taken = {id(part) for part in chosen}
        self._reads.parts = deque(part for part in parts if id(part) not in taken)
        return chosen

    def buries(self, id: FileId) -> bool:
        """Whether one that is in flight tells the inode's death."""
        return any(id in epoch.dead for epoch in self.inflight)

    def _lacking(self, id: FileId) -> list[FileId]:
        """The directories of its names that the replica has not got."""
        return [slot.parent for slot in self._debts.index.slots_of(id) if slot.parent in self._debts.unshipped]

    def _complete(self, part: Part, epoch: Epoch) -> None:
        debts, flush, fact = self._debts, part.flush, part.fact
        id = flush.owed.id
        self._reads.end(id)
        debts.unshipped.pop(id, None)
        epoch.flushes.append(flush)
        sure = fact.settled and not flush.owed.mapped
        epoch.told.stamps[id] = Stamp(fact.size, fact.attributes.mtime_ns, fact.attributes.ctime_ns, sure)
        if flush.owed.whole:
            epoch.whole.add(id)
        if fact.check and fact.kind is Kind.FILE:
            epoch.asked.add(id)
            debts.doubts.ask(id, epoch.number)
        debts.sizes.tell(id, fact.size)
        if not fact.settled and not flush.owed.mapped:
            debts.pace.unsettled(id, flush.begun)
        debts.naming.release(id)

    def _take_slots(self, epoch: Epoch) -> list[SlotFact]:
        index = self._debts.index
        facts: list[SlotFact] = []
        for slot, due in self._debts.naming.take(self._blocker, EPOCH_SLOTS).items():
            if index.is_member(slot.parent):
                epoch.slots[slot] = due
                id = index.get(slot)
                epoch.told.slots[slot] = None if id is None else (id, index.kind(id))
                facts.append(SlotFact(slot, id))
            else:
                self._debts.generations.release(due.generation)
        return facts

    def _blocker(self, slot: Slot, due: Due) -> FileId | None:
        """Whose content must be told before this slot can be."""
        index, unshipped = self._debts.index, self._debts.unshipped
        if not index.is_member(slot.parent):
            return None
        target = index.get(slot)
        if target is None and due.before is not None and self._deletions.undecided(due.before):
            return due.before
        for id in (slot.parent, target):
            if id is not None and id in unshipped:
                return id
        # A name must not show bytes from before it was given (write, then rename), nor may the old name go first.
        for id in (target, due.before):
            if id is not None and index.is_member(id) and self._owed_since(id) <= due.looked:
                return id
        return None

    def _owed_since(self, id: FileId) -> int:
        """The time of the oldest change of a file's bytes that was not composed; far away if there is none."""
        if id in self._debts.doubts:
            return END_OF_FILE  # what the replica has is in doubt under its present name as under the next
        flush, owed = self._reads.get(id), self._debts.table.get(id)
        times = [each.since for each in (flush.owed if flush else None, owed) if each is not None and each.touched]
        return min(times, default=END_OF_FILE)

    def _take_dead(self, epoch: Epoch) -> list[FileId]:
        for id, due in self._debts.naming.take_dead(EPOCH_SLOTS, self._deletions).items():
            if self._debts.index.is_member(id):
                self._debts.generations.release(due.generation)
            else:
                epoch.dead[id] = due
        epoch.told.dead = list(epoch.dead)
        return epoch.told.dead


def _within(parts: list[Part], most: int, count: int) -> list[Part]:
    """The first of these: parts until there are `most` bytes, no more than `count`."""
    total = 0
    for number, part in enumerate(parts):
        if total >= most or number >= count:
            return parts[:number]
        total += part.size
    return parts

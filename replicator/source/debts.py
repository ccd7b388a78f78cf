"""What is owed to the replica, and what it is believed to know.

The state that everything in an outbox shares: who is in the tree and what is to be looked at (`index`, `resolver`);
which content, names and deaths are owed (`table`, `naming`); what of that must wait (`doubts`, `pace`, `refused`); what
the replica knows (`sizes`, `unshipped`). Takes what turns out to be owed, or owed again. Pure.

An inode is *unshipped* until an epoch with the last part of its content was composed. Slots that name it, or lie in it,
wait for that. This is a belief that saves round trips, not a truth: the receiver says what it misses, and that is owed
again.
"""

from __future__ import annotations

from replicator.dirty.generations import Generations
from replicator.dirty.table import DirtyTable, Owed
from replicator.model import FileId, Slot
from replicator.source.doubts import Doubts
from replicator.source.naming import Naming
from replicator.source.pace import Pace
from replicator.source.refused import Refused
from replicator.source.sizes import Sizes
from replicator.tree.exclude import Exclude
from replicator.tree.index import TreeIndex
from replicator.tree.resolver import Due, Resolver


class Debts:
    """Of one outbox. Times are CLOCK_MONOTONIC in ns."""

    def __init__(self, index: TreeIndex, exclude: Exclude) -> None:
        self.index = index
        self.generations = Generations()
        self.resolver = Resolver(index, exclude, self.generations)
        self.table = DirtyTable(self.generations)
        self.naming = Naming(self.generations)
        self.doubts = Doubts()
        self.pace = Pace()
        self.refused = Refused(self.resolver, self.naming, self.pace, self.generations)
        self.sizes = Sizes(index)
        self.unshipped: dict[FileId, None] = {}

    def whole(self, id: FileId, since: int, generation: int | None = None) -> None:
        """The replica lacks this inode: send it with all its names, or declare it dead."""
        if not self.index.is_member(id):
            self.naming.queue_dead(id, Due(self.generations.hold(generation), since))
            return
        self.table.mark(id, since, generation).mark_whole()
        doubt = self.doubts.remove(id)
        if doubt is not None:
            self.table.fold(doubt)
        self.sizes.forget(id)
        self.unshipped[id] = None
        slots = list(self.index.slots_of(id))
        if self.index.is_directory(id):
            slots += [Slot(id, name) for name in self.index.children(id)]
        for slot in slots:
            self.naming.queue(slot, Due(self.generations.hold(generation), since))

    def fold(self, owed: Owed) -> None:
        """What was on its way did not arrive: it is owed again."""
        if not self.index.is_member(owed.id):
            self.generations.release(owed.generation)
            return
        if owed.whole or owed.check or owed.deep:
            self.unshipped[owed.id] = None
        self.table.fold(owed)

    def dead(self, id: FileId, now: int) -> None:
        """The replica has an inode that is not (any more) in the tree."""
        if not self.index.is_member(id):
            self.naming.queue_dead(id, Due(self.generations.hold(), now))

    def slots(self) -> tuple[Slot, ...]:
        """Names that are to be looked at, or to be told."""
        return (*self.naming.slots(), *self.resolver.slots(), *self.refused)

    def directories(self) -> set[FileId]:
        """Directories of which a name is to be looked at, or to be told."""
        return {*(slot.parent for slot in self.slots()), *self.resolver.lists()}

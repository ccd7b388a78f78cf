"""The sender's state: what is owed, what is on its way, and what the replica answers.

Takes what the resolver found and the receiver's answers; composed of parts that take and give the rest:

    debts      what is owed, and what the replica is believed to know
    suspicion  what may differ though nobody told: owed too
    unlisted   directories whose names are to be compared
    reads      what is being read for an epoch
    epochs     the next one, and those in flight
    traffic    how much bulk goes before small changes
    verdicts   what comes of comparisons of content
    deletions  what --max-delete holds back
    news       what is durable, for the index

Beside it, of an outbox: snapshot.py (for the journal), figures.py and backlog.py (for people). No I/O: looks and reads
are done by whoever drives it. Everything in an epoch that is not durable is owed again when the connection is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from replicator.dirty.outsiders import MappedOutsiders
from replicator.dirty.table import Owed
from replicator.dirty.writers import Writers
from replicator.errors import RemoteError
from replicator.model import Answer, FileId, Refusal
from replicator.source.debts import Debts
from replicator.source.epochs import Epochs
from replicator.source.flight import Epoch
from replicator.source.held import HeldDeletions
from replicator.source.news import News
from replicator.source.reads import Reads
from replicator.source.suspicion import Suspicion
from replicator.source.traffic import Traffic
from replicator.source.unlisted import Unlisted
from replicator.source.verdicts import Verdicts
from replicator.tree.exclude import Exclude
from replicator.tree.index import TreeIndex
from replicator.tree.resolver import Changes, Due
from replicator.tree.stamps import Stamp


class Outbox:
    """Of one source, driven by its sender's loop. Times are CLOCK_MONOTONIC in ns."""

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
        self.debts = debts = Debts(index or TreeIndex(root), exclude)
        self.index, self.resolver, self.table = debts.index, debts.resolver, debts.table
        self.generations, self.doubts, self.pace = debts.generations, debts.doubts, debts.pace
        self.unlisted = Unlisted(debts)
        self.deletions = HeldDeletions(max_delete, debts.index, debts.naming, debts.generations)
        self.traffic = Traffic()
        self.reads = Reads(debts, self.traffic, clock, steady)
        self.epochs = Epochs(debts, self.reads, self.deletions, last_epoch)
        self.news = News(debts, self.reads, self.epochs)
        self.suspicion = Suspicion(debts, self.unlisted, self.reads, self.news)
        self.verdicts = Verdicts(debts)
        self.outsiders = MappedOutsiders()
        self.writers = writers or Writers()
        self.checking = False
        """New members are offered to the receiver for comparison before their bytes are sent."""
        self.succeeding = False
        """A predecessor may have told the replica of directories that the index does not have."""

    # ------------------------------------------------------------------ what changed

    def start(self, now: int) -> None:
        """Owe the root and everything below it."""
        self._welcome(self.index.root, now, None)
        self.resolver.list(self.index.root, now)

    def changed(self, changes: Changes, looked: int) -> None:
        """Take over what the resolver found. `looked`: when its looks were over.

        The records of what happened before `looked` must be merged before the next epoch is composed.
        """
        naming = self.debts.naming
        for id, due in changes.members:
            self._welcome(id, due.since, due.generation)
            dying = naming.is_dying(id) or self.epochs.buries(id)
            if self.index.is_directory(id) and (self.checking or self.succeeding or dying):
                self.unlisted.add(id, due.since, due.generation)
        for slot, due in changes.slots:
            self.table.touch(slot.parent)
            due.looked = looked
            naming.queue(slot, due)
            self.deletions.seen(slot)
        self.deletions.dead(changes, looked)
        for id, due in changes.dead:
            self._forget(id)
            naming.queue_dead(id, due)

    def _welcome(self, id: FileId, since: int, generation: int | None) -> None:
        self.debts.naming.resume(id)  # it does not die after all
        self.deletions.spare(id)
        owed = self.table.mark(id, since, generation)
        owed.mapped |= self.outsiders.take(id)
        owed.share.update(self.writers.welcome(id))
        if self.checking:
            owed.check = True
            owed.deep |= owed.mapped  # stores that nobody heard of do not show in its times
        else:
            owed.mark_whole()
        self.debts.unshipped[id] = None

    def _forget(self, id: FileId) -> None:
        flush, owed = self.reads.get(id), self.table.get(id)
        if (owed is not None and owed.mapped) or (flush is not None and flush.owed.mapped):
            self.outsiders.note(id)  # it may come back with pages that were not written out
        self.table.drop(id)
        self.debts.unshipped.pop(id, None)
        self.debts.sizes.forget(id)
        self.reads.forget(id)
        self.pace.forget(id)
        doubt = self.doubts.remove(id)
        if doubt is not None:
            self.generations.release(doubt.generation)
        self.unlisted.forget(id)
        self.debts.naming.release(id)

    # ------------------------------------------------------------------ what may go on

    def next_try(self, after: int) -> int | None:
        """When, after `after`, the first of what is held off may be tried again."""
        slot = self.debts.refused.next_due(after)
        inode = self.pace.next_due(after, self.table, self.debts.naming.deferred)
        return min((when for when in (slot, inode) if when is not None), default=None)

    def settle(self, now: int, after: int = 5_000_000_000, most: int = 1000) -> None:
        """Tell the replica once more about up to `most` inodes that have been quiet for `after` ns.

        Now their ctime proves that nothing changed since, so that a later comparison need not send them again.
        """
        if not self.resolver.pending:
            for slot, due in self.deletions.settle(now).items():
                self.resolver.look(slot, due.since, due.generation, force=True)
                self.generations.release(due.generation)
        for id in self.pace.quiet(now - after, most):
            if self.index.is_member(id) and id not in self.table and id not in self.reads:
                self.table.mark(id, now)

    def leaving(self) -> Iterator[Owed]:
        """What is owed and not in the table any more: it is being read, or is in an epoch that is not durable."""
        yield from self.reads.owed()
        yield from self.doubts.owed()
        yield from (flush.owed for epoch in self.epochs.inflight for flush in epoch.flushes)

    # ------------------------------------------------------------------ what the receiver says

    def applied(self, answer: Answer, now: int) -> list[int]:
        """An epoch is visible on the replica; returns the ages, in ns, of what it completed.

        RemoteError if the replica doubts what it was not asked about.
        """
        epoch = next((epoch for epoch in self.epochs.inflight if epoch.number == answer.epoch), None)
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
                self.reads.abandon(id)
            elif any(id in later.whole for later in self.epochs.inflight if later.number > epoch.number):
                continue  # it is on its way already
            self.debts.whole(id, oldest, generation)
            if id in refused and not self.index.is_member(id):
                self.debts.naming.defer(id)
        for id in dict.fromkeys(answer.doubts):
            if id not in epoch.asked:
                raise RemoteError(f"the replica doubts {id.text()}, of which epoch {epoch.number} did not ask")
            if id in checked and id not in answer.needs and id not in refused:
                self.verdicts.doubted(checked[id].owed)
        retry = max((self.pace.due(id) for id in refused), default=0)
        for slot in answer.looks:
            if refused:
                due = Due(self.generations.hold(generation), oldest)
                self.debts.refused.put(slot, epoch.slots.get(slot), due, retry)
            else:
                self.resolver.look(slot, oldest, generation, force=True)
        for id in (*(flush.owed.id for flush in epoch.flushes), *epoch.dead):
            if id not in refused:
                self.pace.succeeded(id)
        return [now - since for since in epoch.sinces()]

    def lost(self, refusals: Iterable[Refusal], number: int, now: int) -> None:
        """What the replica could not keep of epochs up to `number`, just before those are called durable."""
        epochs = [epoch for epoch in self.epochs.inflight if epoch.number <= number]
        oldest = min((since for epoch in epochs for since in epoch.sinces()), default=now)
        generation = min((token for epoch in epochs for token in epoch.tokens()), default=None)
        for refusal in refusals:
            for epoch in epochs:
                if refusal.id in epoch.told.stamps:
                    epoch.told.stamps[refusal.id] = Stamp(0, 0, 0, sure=False)
            self.pace.defer(refusal.id, now)
            self.debts.whole(refusal.id, oldest, generation)

    def durable(self, number: int, now: int) -> list[int]:
        """Epochs up to `number` survive a power cut on the replica; returns the ages of what they completed."""
        ages: list[int] = []
        inflight = self.epochs.inflight
        while inflight and inflight[0].number <= number:
            epoch = inflight.popleft()
            ages += [now - since for since in epoch.sinces()]
            self.news.add(epoch.told)
            for generation in epoch.tokens():
                self.generations.release(generation)
        return ages

    def disconnected(self) -> None:
        """The connection is lost: all that is not durable is owed again."""
        for epoch in self.epochs.inflight:
            self._owe_again(epoch)
        self.epochs.inflight.clear()
        self.traffic.lost()
        self.reads.abandon_all()
        for owed in self.doubts.clear():
            self.debts.fold(owed)
        self.pace.retry_all()
        self.debts.refused.retry_all()

    def _owe_again(self, epoch: Epoch) -> None:
        for flush in epoch.flushes:
            self.debts.sizes.lost(flush)
            self.debts.fold(flush.owed)
        for slot, due in epoch.slots.items():
            self.debts.naming.queue(slot, due)
        for id, due in epoch.dead.items():
            self.debts.naming.queue_dead(id, due)

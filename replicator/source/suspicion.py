"""What may differ from the replica though no record and no look told so.

Takes members of which that is suspected, by a survey, a scan, a loss, an answer; owes what it takes to find out: an
offer that the replica compares, a comparison of the content, looks at the names. Tells who else is to be suspected when
records were lost. Keeps nothing. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from replicator.model import FileId
from replicator.source.debts import Debts
from replicator.source.news import News
from replicator.source.reads import Reads
from replicator.source.unlisted import Unlisted
from replicator.tree.resolver import Due


class Suspicion:
    """Of one outbox. Times are CLOCK_MONOTONIC in ns."""

    def __init__(self, debts: Debts, unlisted: Unlisted, reads: Reads, news: News) -> None:
        self._debts = debts
        self._unlisted = unlisted
        self._reads = reads
        self._news = news

    def offer(self, id: FileId, now: int, generation: int | None) -> None:
        """The replica may not have this member, or another state of it: offer it, with its names, for comparison."""
        debts = self._debts
        if not debts.index.is_member(id):
            return
        debts.table.mark(id, now, generation).check = True
        debts.sizes.forget(id)
        debts.unshipped[id] = None
        for slot in debts.index.slots_of(id):
            debts.naming.queue(slot, Due(debts.generations.hold(generation), now))

    def suspect(
        self, id: FileId, now: int, generation: int | None, *, content: bool = True, numbers: bool = False
    ) -> None:
        """A member may have changed without a word: owe all that may differ from the replica, names too.

        Without `content`, what is in a file has not changed without a word. `numbers`: see Resolver.list.
        """
        debts = self._debts
        if not debts.index.is_member(id):
            return
        owed = debts.table.mark(id, now, generation)
        if content:
            owed.deep = True
            debts.sizes.forget(id)
        if debts.index.is_directory(id):
            debts.resolver.list(id, now, generation, numbers=numbers)
            self._unlisted.add(id, now, generation)

    def doubt(self, id: FileId, now: int, *, lost: bool = False) -> None:
        """The content that the replica has of this inode is in doubt: compare it.

        `lost`: what the kernel told of it was lost, which may have been that its pages can be stored to in silence.
        """
        owed = self._debts.table.mark(id, now)
        owed.deep = True
        owed.mapped |= lost

    def missed(self, id: FileId, now: int, generation: int | None) -> None:
        """There is no such inode (any more)."""
        index, resolver = self._debts.index, self._debts.resolver
        if not index.is_member(id) or id == index.root:
            return
        slots = index.slots_of(id)
        for slot in slots:
            resolver.look(slot, now, generation)
        if not slots:
            resolver.doubt(id, now)

    def since(self, when: int) -> list[FileId]:
        """Whose content was read since then, or is about to be.

        If changes were missed from then on, that carries their times without their bytes: its stamp proves nothing.
        """
        return list(dict.fromkeys((*self._debts.table, *self._reads, *self._debts.doubts, *self._reads.since(when))))

    def distrust(self, ids: Sequence[FileId], now: int, *, content: bool) -> None:
        """As `suspect`, of what the replica was told lately: their stamps count no more."""
        for id in ids:
            self.suspect(id, now, None, content=content)
            owed = self._debts.table.get(id)
            if owed is not None:
                owed.mapped |= content  # as for what was lost of one
        self._news.distrust(ids)

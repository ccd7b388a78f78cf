"""What comes of a comparison: a file in doubt is owed again, with what differs, or to be compared once more.

Takes what the replica doubts, and how the comparison of each (replicator/blockwise.py) ended; owes what follows. A
comparison that is of no interest any more (a lost connection, an inode that is gone) ends without a trace. Pure.
"""

from __future__ import annotations

from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import Owed
from replicator.source.debts import Debts


class Verdicts:
    """Of one outbox: what `debts.doubts` become. Times are CLOCK_MONOTONIC in ns."""

    def __init__(self, debts: Debts) -> None:
        self._debts = debts

    def doubted(self, asked: Owed) -> None:
        """The replica doubts what it has of a file: have it compared block by block."""
        debts = self._debts
        if debts.index.is_member(asked.id):
            debts.sizes.forget(asked.id)
            generation = debts.generations.hold(asked.generation)
            debts.doubts.add(Owed(asked.id, generation, asked.since, deep=True, mapped=asked.mapped))

    def compared(self, owed: Owed, differ: RangeSet, size: int) -> None:
        """The comparison of a file is over: `differ` are the ranges of its first `size` bytes that the replica has not.

        They are owed, and in any case a fact that the content is right now.
        """
        debts = self._debts
        if debts.doubts.is_compared(owed):
            debts.doubts.remove(owed.id)
            owed.deep = False
            owed.ranges.update(differ)
            owed.holes = True
            debts.sizes.tell(owed.id, size)
            debts.table.fold(owed)

    def failed(self, owed: Owed, now: int, *, whole: bool = False) -> None:
        """A file could not be compared: it is tried again, or (`whole`) sent, after a pause."""
        debts = self._debts
        if debts.doubts.is_compared(owed):
            debts.doubts.remove(owed.id)
            debts.pace.defer(owed.id, now)
            if whole:
                owed.deep = False
                owed.mark_whole()
            debts.fold(owed)

    def gone(self, owed: Owed) -> None:
        """It does not exist any more: its names will tell."""
        if self._debts.doubts.is_compared(owed):
            self._debts.doubts.remove(owed.id)
            self._debts.generations.release(owed.generation)

"""What the replica durably has and the index has not been told yet.

Takes what epochs told, once it is durable; gives it to whoever writes the index (replicator/ledger.py). After a gap, an
inode that is as its stamp says is not touched: so a stamp must vouch for all that it may hide, which is what is owed
besides, what a survey is to find, and of a directory the names that are owed. If it cannot, it is given as one that
vouches for nothing, and the inode is told once more when it is quiet. Pure.
"""

from __future__ import annotations

from collections.abc import Collection

from replicator.model import FileId
from replicator.source.debts import Debts
from replicator.source.epochs import Epochs
from replicator.source.reads import Reads
from replicator.tree.store import Told


class News:
    """Of one outbox."""

    def __init__(self, debts: Debts, reads: Reads, epochs: Epochs) -> None:
        self._debts = debts
        self._reads = reads
        self._epochs = epochs
        self.waiting: list[Told] = []
        """To be taken, in order."""
        self.doubting = False
        """Whether a survey is to find changes that nobody told of."""

    def add(self, told: Told) -> None:
        """This is durable."""
        if told:
            self.waiting.append(told)

    def take(self, now: int) -> list[Told]:
        """What is `waiting`, to be written to the index."""
        taken, self.waiting = self.waiting, []
        named: set[FileId] | None = None
        for told in taken:
            for id, stamp in told.stamps.items():
                if stamp is None or not stamp.sure:
                    continue
                if self._owes(id):
                    told.stamps[id] = stamp._replace(sure=False)
                    continue
                if self._debts.index.is_directory(id) and not self.doubting:
                    if named is None:
                        named = self._debts.directories()
                    if id not in named and not self._debts.index.pending(id):
                        continue
                elif not self.doubting:
                    continue
                told.stamps[id] = stamp._replace(sure=False)
                self._debts.pace.unsettled(id, now)
        return taken

    def _owes(self, id: FileId) -> bool:
        """Whether another fact of it will follow anyway."""
        return id in self._debts.table or id in self._reads or id in self._debts.doubts

    def later(self) -> list[Told]:
        """What the replica was told and `take` did not give, in order."""
        return [*self.waiting, *(epoch.told for epoch in self._epochs.inflight)]

    def distrust(self, ids: Collection[FileId]) -> None:
        """The stamps of these, those on their way too, vouch for nothing."""
        self.waiting.append(Told(stamps=dict.fromkeys(ids)))
        for epoch in self._epochs.inflight:
            for id in epoch.told.stamps.keys() & set(ids):
                stamp = epoch.told.stamps[id]
                epoch.told.stamps[id] = stamp and stamp._replace(sure=False)

"""Files whose content on the replica is in doubt: from the check that asks, to the comparison that tells.

A file that was checked is *asked* until the epoch is answered; the receiver may then doubt it, and it *waits* to be
compared; then it is *compared*, and what differs is owed. None of its bytes are sent meanwhile: the first bytes that
the replica gets make it believe that all are right. What changes in the source meanwhile is owed in the dirty table as
ever. Each that waits or is compared holds a token, in its `Owed`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from replicator.dirty.table import Owed
from replicator.model import FileId


class Doubts:
    """Of one outbox."""

    def __init__(self) -> None:
        self._asked: dict[FileId, int] = {}
        self._waiting: dict[FileId, Owed] = {}
        self._compared: dict[FileId, Owed] = {}

    def __contains__(self, id: object) -> bool:
        """Whether its bytes are not to be sent for now."""
        return id in self._asked or id in self._waiting or id in self._compared

    def __iter__(self) -> Iterator[FileId]:
        """All of them."""
        yield from (*self._asked, *self._waiting, *self._compared)

    def __len__(self) -> int:
        """How many wait to be compared, or are."""
        return len(self._waiting) + len(self._compared)

    @property
    def waiting(self) -> int:
        """How many wait to be compared."""
        return len(self._waiting)

    def owed(self) -> Iterator[Owed]:
        """Of all that wait or are compared."""
        yield from self._waiting.values()
        yield from self._compared.values()

    def ask(self, id: FileId, epoch: int) -> None:
        """A check of it goes out with this epoch."""
        self._asked[id] = epoch

    def answered(self, id: FileId, epoch: int) -> bool:
        """The epoch was answered; False if nothing was asked of it there."""
        if self._asked.get(id) != epoch:
            return False
        del self._asked[id]
        return True

    def add(self, owed: Owed) -> None:
        """It is to be compared; it is not yet."""
        self._waiting[owed.id] = owed

    def begin(self, most: int) -> list[Owed]:
        """Up to `most` that are compared from now on."""
        begun = [self._waiting.pop(id) for id in list(islice(self._waiting, max(0, most)))]
        self._compared.update((owed.id, owed) for owed in begun)
        return begun

    def is_compared(self, owed: Owed) -> bool:
        """Whether it still is: what came of it is of no interest otherwise."""
        return self._compared.get(owed.id) is owed

    def remove(self, id: FileId) -> Owed | None:
        """In doubt no more, for one reason or another; with its token, if it held one."""
        self._asked.pop(id, None)
        return self._waiting.pop(id, None) or self._compared.pop(id, None)

    def clear(self) -> list[Owed]:
        """None is in doubt any more; with their tokens."""
        taken = list(self.owed())
        for group in (self._asked, self._waiting, self._compared):
            group.clear()
        return taken

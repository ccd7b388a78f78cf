"""Directories whose names must be compared with the replica's: it may have names that nobody remembers here.

Takes directories; gives those that can be asked about. Each holds a token, in its `Due`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from replicator.model import FileId
from replicator.source.debts import Debts
from replicator.tree.resolver import Due

PATIENCE = 1_000_000_000  # ns


class Unlisted:
    """Of one outbox."""

    def __init__(self, debts: Debts) -> None:
        self._debts = debts
        self._dues: dict[FileId, Due] = {}
        self._asked: dict[FileId, None] = {}

    def __len__(self) -> int:
        return len(self._dues)

    def __iter__(self) -> Iterator[FileId]:
        """Those that were taken and are not answered, too."""
        yield from self._dues
        yield from self._asked

    def add(self, directory: FileId, now: int, generation: int | None = None) -> None:
        """Its names must be compared."""
        if directory not in self._dues:
            self._dues[directory] = Due(self._debts.generations.hold(generation), now)

    def oldest(self) -> int:
        """The time of the first of them, which no other waits behind for long; there must be one."""
        return next(iter(self._dues.values())).since

    def take(self, most: int, now: int) -> dict[FileId, Due]:
        """Up to `most` that the replica knows by now, with their tokens; until `answered`.

        One of which a name is still to be told would differ in vain: it is left, for PATIENCE at most.
        """
        if not self._dues:
            return {}
        busy = self._debts.directories()
        known = [
            id
            for id, due in self._dues.items()
            if id not in self._debts.unshipped and (id not in busy or now - due.since > PATIENCE)
        ]
        self._asked.update(dict.fromkeys(known[:most]))
        return {id: self._dues.pop(id) for id in known[:most]}

    def answered(self, ids: Iterable[FileId]) -> None:
        """What followed from it is owed by itself."""
        for id in ids:
            self._asked.pop(id, None)

    def forget(self, id: FileId) -> None:
        """It is no member any more."""
        due = self._dues.pop(id, None)
        if due is not None:
            self._debts.generations.release(due.generation)

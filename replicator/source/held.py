"""Which deletions the replica is not told of, because there are too many at once (`--max-delete`).

Takes what the resolver found and names that only the replica has; says what may be told. A deletion is a name that is
gone together with the last link of its inode: not a rename, not what a new file took the place of. A directory that
left the tree goes with all that was in it, or not at all. What is held stays owed; a sender that is started again finds
it again. A name that comes back is held no more. See docs/decisions/0022.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from replicator.dirty.generations import Generations
from replicator.model import FileId, Slot
from replicator.source.deletions import Deletions
from replicator.source.naming import Naming
from replicator.tree.index import TreeIndex
from replicator.tree.resolver import Changes, Due

log = logging.getLogger(__name__)


class HeldDeletions:
    """One sender's. A container of the inodes whose deaths are held."""

    def __init__(self, limit: int | None, index: TreeIndex, naming: Naming, generations: Generations) -> None:
        self._deletions: Deletions[FileId | Slot] = Deletions(limit)
        self._index = index
        self._naming = naming
        self._generations = generations
        self._spared = False
        self._below: dict[FileId, dict[FileId, None]] = {}
        """The groups that are held, by what they begin with."""
        self._dead: dict[FileId, FileId] = {}
        """What is held, and what its group begins with."""
        self._extra: dict[Slot, Due] = {}

    @property
    def limit(self) -> int | None:
        """Names within a batch; None for any number."""
        return self._deletions.limit

    @property
    def holding(self) -> int:
        """How many names are held."""
        return self._deletions.holding

    def __contains__(self, id: object) -> bool:
        return id in self._dead

    def undecided(self, id: FileId) -> bool:
        """Whether a name that it had must stay for now: it has no other, and its death is held, or not known yet."""
        if self.limit is None:
            return False
        return id in self._dead or (self._index.is_member(id) and not self._index.slots_of(id))

    def dead(self, changes: Changes, now: int) -> None:
        """Judge what has died. To be called before the deaths are queued, and after their slots."""
        if self.limit is None:
            return
        groups: dict[FileId, list[FileId]] = {}
        top: FileId | None = None
        for id, _ in changes.dead:
            if top is None or id in changes.tops:
                top = id
            groups.setdefault(top, []).append(id)
        for top in list(groups):
            self._judge(top, groups, now)

    def _judge(self, outermost: FileId, groups: dict[FileId, list[FileId]], now: int) -> None:
        """Take such a group, and before it those of what was in it, out of `groups`; those that may not go are held.

        A directory does not go before what was in it: that would go with it.
        """
        pending, opened = [outermost], set[FileId]()
        while pending:
            top = pending[-1]
            left = self._naming.left(top)
            if top in groups and top not in opened:
                opened.add(top)
                pending += [id for id in left if id in groups and id not in opened]
                continue
            pending.pop()
            group = groups.pop(top, None)
            if group is None or all(self._index.get(slot) is not None for slot in self._naming.leaving(top)):
                continue
            if not self._ask(top, len(group), now, hold=any(map(self.undecided, left))):
                self._below[top] = dict.fromkeys(group)
                self._dead.update(dict.fromkeys(group, top))

    def surplus(self, slot: Slot, names: int, due: Due, now: int) -> bool:
        """Whether a name that only the replica has, with `names` names in and below it, may go. Keeps `due` if not."""
        if self._ask(slot, names, now):
            return True
        if slot in self._extra:
            self._generations.release(self._extra[slot].generation)
        self._extra[slot] = due
        return False

    def spare(self, id: FileId) -> None:
        """An inode has come back into the tree."""
        top = self._dead.pop(id, None)
        if top is None:
            return
        group = self._below[top]
        del group[id]
        self._deletions.shrink(top, len(group))
        if not group:
            del self._below[top]
        self._spared = True

    def seen(self, slot: Slot) -> None:
        """A slot was looked at."""
        id = self._index.get(slot)
        if id is not None:
            self._naming.release(id)
            if slot in self._extra:
                self._deletions.shrink(slot, 0)
                self._generations.release(self._extra.pop(slot).generation)
                self._spared = True

    def extra(self) -> Iterator[Slot]:
        """Names that only the replica has, and that are held."""
        yield from self._extra

    def settle(self, now: int) -> dict[Slot, Due]:
        """Let go what did not come back when the rest did, if it is few enough. To be called when no look is pending.

        Names that only the replica has are to be looked at then; their dues hold tokens.
        """
        if not self._spared:
            return {}
        self._spared = False
        if not self._deletions.settle(now):
            return {}
        for id in self._dead:
            self._naming.release(id)
        extra, self._extra = self._extra, {}
        self._dead.clear()
        self._below.clear()
        return extra

    def _ask(self, group: FileId | Slot, names: int, now: int, *, hold: bool = False) -> bool:
        before = self.holding
        allowed = self._deletions.ask(group, names, now, hold=hold)
        if not allowed and not before:
            log.error(
                "more than %d names are deleted within a minute (--max-delete): holding deletions until the names come"
                " back or the sender is started with a higher limit; everything else goes on",
                self.limit,
            )
        return allowed

"""From "look at this name" to "this name means that inode".

Takes looks (slots and directories to look at again), looks through a `Namespace`, keeps the index right, and gives
back what changed: slots, new members, inodes that are dead for the replica. Names are never replayed: an event only
says where to look. Pure but for the namespace that it is given.

The last name of a live inode is not taken away before its new name is known, or before `patience` has passed in which
no other name showed up (then the inode is proven to be outside the tree).
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

from replicator.dirty.generations import Generations
from replicator.model import FileId, Kind, Slot
from replicator.tree.exclude import Exclude
from replicator.tree.index import TreeIndex


class Found(NamedTuple):
    """What a name means at the moment of the look."""

    id: FileId
    kind: Kind


class DirectoryGone(Exception):
    """The directory of a slot cannot be opened any more."""


_Key = TypeVar("_Key", Slot, FileId)


class Namespace(Protocol):
    """How the resolver looks at the source. OSError means that the look failed, not that nothing is there."""

    def lookup(self, slot: Slot) -> Found | None:
        """What the slot holds; None if nothing. DirectoryGone if its directory cannot be found by its id."""

    def names(self, directory: FileId) -> Mapping[bytes, int] | None:
        """All names in a directory, and the inode numbers that they have there; None if it is gone."""

    def alive(self, id: FileId) -> bool:
        """Whether the inode has a name somewhere: false once its handle is stale or it is unlinked."""


@dataclass(slots=True)
class Due:
    """A token (see generations.py) and the time, CLOCK_MONOTONIC in ns, of the oldest change behind it."""

    generation: int
    since: int
    force: bool = False
    """Tell the replica even if the index already says so."""
    looked: int = 0
    """When the last look at it was over, as `since`."""
    before: FileId | None = None
    """What was in a slot that is to be told, if it was something else."""
    order: int = 0
    """The resolver's count when it became due; what follows from a look has the look's order."""
    numbers: bool = False
    """Of a directory: a name that means an inode of the same number as before means the same inode."""


@dataclass(slots=True)
class Hold:
    """A slot that waits for the new name of what it held."""

    due: Due
    started: int
    rounds: int = 0


@dataclass(slots=True)
class Changes:
    """What a round of looking found. Each due's token goes to the receiver of the changes."""

    slots: list[tuple[Slot, Due]] = field(default_factory=list)
    members: list[tuple[FileId, Due]] = field(default_factory=list)
    """New in the tree. These dues hold no token: the slot's does."""
    lists: list[FileId] = field(default_factory=list)
    """Directories that will be listed because of it."""
    dead: list[tuple[FileId, Due]] = field(default_factory=list)
    """What was below a dead directory follows it."""
    buried: list[FileId] = field(default_factory=list)
    """The directories among the dead."""
    returned: list[FileId] = field(default_factory=list)
    """The new members that were members before."""
    tops: set[FileId] = field(default_factory=set)
    """Those of the dead that are not dead because of a directory above them."""
    failed: list[tuple[Slot | FileId, OSError]] = field(default_factory=list)
    """Looks that failed; they stay due."""


class Resolver:
    """Keeps a `TreeIndex` equal to the source's names."""

    def __init__(
        self, index: TreeIndex, exclude: Exclude, generations: Generations, patience: int = 20_000_000
    ) -> None:
        """`patience`: how long, in ns, the last name of a live inode is kept while its new name is awaited."""
        self.index = index
        self._exclude = exclude
        self._generations = generations
        self._patience = patience
        self._due: dict[Slot, Due] = {}
        self._lists: OrderedDict[FileId, Due] = OrderedDict()
        self._held: dict[Slot, Hold] = {}
        self._dying: dict[FileId, Due] = {}
        self._gone: set[FileId] = set()
        """Directories of which this round has found out that they are removed."""
        self._awaited: set[FileId] = set()
        """Whom this round has found in a slot that is held."""
        self._order = 0
        self.complete = False
        """Whether every directory was listed once: before that, nothing can be proven to be outside."""

    def look(self, slot: Slot, now: int, generation: int | None = None, force: bool = False) -> None:
        """The slot may mean something else now."""
        self._enqueue(self._due, slot, now, generation, force, None)

    def list(self, directory: FileId, now: int, generation: int | None = None, *, numbers: bool = False) -> None:
        """Every name in the directory may mean something else now.

        `numbers`: whoever asks knows that no inode number has changed hands, so that names whose numbers are the same
        need no look of their own.
        """
        numbers = numbers and (directory not in self._lists or self._lists[directory].numbers)
        self._enqueue(self._lists, directory, now, generation, False, None)
        self._lists[directory].numbers = numbers

    def doubt(self, id: FileId, now: int) -> None:
        """A member without a name: it is dead, unless a look that is due finds a name."""
        if id not in self._dying:
            self._order += 1
            self._dying[id] = Due(self._generations.hold(), now, order=self._order)

    def slots(self) -> Iterator[Slot]:
        """Names that are to be looked at."""
        yield from self._due
        yield from self._held

    def lists(self) -> Iterator[FileId]:
        """Directories that are to be listed."""
        yield from self._lists

    def dying(self) -> Iterator[FileId]:
        """Inodes that may be dead."""
        yield from self._dying

    @property
    def pending(self) -> int:
        """Looks still to do, held slots included."""
        return len(self._due) + len(self._lists) + len(self._held) + len(self._dying)

    @property
    def workable(self) -> int:
        """Looks that can be done at once."""
        return len(self._due) + len(self._lists)

    @property
    def waiting(self) -> bool:
        """Whether some slot waits for time to pass."""
        return bool(self._held) or bool(self._dying)

    def oldest(self) -> int | None:
        """The time of the oldest change not looked at."""
        times = [due.since for group in (self._due, self._lists, self._dying) for due in group.values()]
        times += [hold.due.since for hold in self._held.values()]
        return min(times, default=None)

    def resolve(self, view: Namespace, now: int, budget: int = 1000) -> Changes:
        """Do up to `budget` looks, and look again at what is held."""
        changes = Changes()
        self._gone.clear()
        self._list_some(view, changes, budget)
        observed, dues = self._observe(view, changes, budget)
        dying = self._hold_back(view, observed, dues, now)
        for slot, found in observed.items():
            self._apply(slot, found, dues[slot], changes)
        for id, due in dying.items():
            if id not in self._dying:
                self._order += 1
                self._dying[id] = Due(self._generations.hold(due.generation), due.since, order=self._order)
        self._bury(view, changes)
        return changes

    def _enqueue(
        self, queue: dict[_Key, Due], key: _Key, now: int, generation: int | None, force: bool, order: int | None
    ) -> None:
        if order is None:
            self._order += 1
            order = self._order
        due = queue.get(key)
        if due is None:
            queue[key] = Due(self._generations.hold(generation), now, force, order)
        else:
            self._older(due, now, generation)
            due.force = due.force or force
            due.order = min(due.order, order)

    def _follow(self, queue: dict[_Key, Due], key: _Key, due: Due, *, force: bool = False) -> None:
        """Look at what a look led to."""
        self._enqueue(queue, key, due.since, due.generation, force, due.order)

    def _older(self, due: Due, now: int, generation: int | None) -> None:
        due.since = min(due.since, now)
        if generation is not None and generation < due.generation:
            due.generation = self._generations.merge(due.generation, self._generations.hold(generation))

    def _list_some(self, view: Namespace, changes: Changes, budget: int) -> None:
        while self._lists and len(self._due) < budget:
            directory, due = self._lists.popitem(last=False)
            if self.index.is_member(directory):
                try:
                    names = view.names(directory)
                    if names is None:
                        self._confirm_gone(view, directory)
                except OSError as error:
                    self._lists[directory] = due
                    changes.failed.append((directory, error))
                    return
                there = names or {}
                if due.numbers:  # of subvolumes only the number that all of their roots have is told
                    doubtful = {*self.index.unlike(directory, there)}
                else:
                    doubtful = {*self.index.entries(directory), *there}
                for name in doubtful:
                    self._follow(self._due, Slot(directory, name), due, force=due.force)
            self._generations.release(due.generation)

    def _observe(
        self, view: Namespace, changes: Changes, budget: int
    ) -> tuple[dict[Slot, Found | None], dict[Slot, Due]]:
        dues: dict[Slot, Due] = {slot: self._due.pop(slot) for slot in list(islice(self._due, budget))}
        for slot, hold in self._held.items():
            due = dues.get(slot)
            if due is None:
                dues[slot] = hold.due
            else:
                self._older(due, hold.due.since, hold.due.generation)
                self._generations.release(hold.due.generation)
                hold.due = due
        observed: dict[Slot, Found | None] = {}
        for slot, due in dues.items():
            if not self.index.is_member(slot.parent):
                self._generations.release(due.generation)
                self._held.pop(slot, None)
                continue
            try:
                observed[slot] = self._included(slot, self._lookup(view, slot))
            except OSError as error:
                changes.failed.append((slot, error))
                self._held.pop(slot, None)
                self._due[slot] = due
        return observed, dues

    def _lookup(self, view: Namespace, slot: Slot) -> Found | None:
        try:
            return view.lookup(slot)
        except DirectoryGone:
            self._confirm_gone(view, slot.parent)
            return None

    def _confirm_gone(self, view: Namespace, directory: FileId) -> None:
        """A sick disk makes a handle stale just as removal does: OSError if a name still leads to the directory."""
        passed: list[FileId] = []
        while directory not in self._gone:
            passed.append(directory)
            slots = self.index.slots_of(directory)
            try:
                found = view.lookup(slots[0]) if slots else None
            except DirectoryGone:
                directory = slots[0].parent
                continue
            if directory == self.index.root or (found is not None and found.id == directory):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            break
        self._gone.update(passed)

    def _included(self, slot: Slot, found: Found | None) -> Found | None:
        if found is not None and found.id in self._exclude.own:
            return None
        if found is None or not self._exclude:
            return found
        parent = self.index.path(slot.parent)
        if parent is None and self._exclude.by_path:
            return found  # looked at again when its directory has a place
        path = parent + b"/" + slot.name if parent else slot.name
        return None if self._exclude.matches(path, found.kind is Kind.DIRECTORY) else found

    def _hold_back(
        self, view: Namespace, observed: dict[Slot, Found | None], dues: dict[Slot, Due], now: int
    ) -> dict[FileId, Due]:
        """Take out of `observed` every slot whose occupant would lose its last name too early; give what dies."""
        dying: dict[FileId, Due] = {}
        alive: dict[FileId, bool] = {}
        awaited = self._awaited = set[FileId]()
        claims: dict[FileId, set[Slot]] = {}
        for slot, found in observed.items():
            if found is not None:
                claims.setdefault(found.id, set()).add(slot)
        again = True
        while again:
            again = False
            for slot in list(observed):
                old, found = self.index.get(slot), observed[slot]
                if old is None or (found is not None and found.id == old):
                    continue
                if claims.get(old) or any(name not in observed for name in self.index.slots_of(old)):
                    continue
                if old not in alive:
                    alive[old] = _may_live(view, old)
                hold = self._held.get(slot)
                if alive[old] and (old in awaited or not self._expired(hold, now)):
                    if hold is None:
                        self._held[slot] = Hold(dues[slot], now)
                    elif old in awaited:  # its new name is known, but held back itself: patience begins anew
                        hold.started, hold.rounds = now, 0
                    del observed[slot]
                    if found is not None:
                        claims[found.id].discard(slot)
                        awaited.add(found.id)
                    again = True  # what it would have named may now be without a name itself
                else:
                    dying[old] = dues[slot]
        for slot in observed:
            self._held.pop(slot, None)
        for hold in self._held.values():
            hold.rounds += 1
        return {id: due for id, due in dying.items() if not claims.get(id)}

    def _expired(self, hold: Hold | None, now: int) -> bool:
        return self.complete and hold is not None and hold.rounds >= 2 and now - hold.started >= self._patience

    def _apply(self, slot: Slot, found: Found | None, due: Due, changes: Changes) -> None:
        old = self.index.get(slot)
        if found is None:
            if old is not None:
                self.index.unbind(slot)
        elif found.id != old:
            member, again = self.index.is_member(found.id), self.index.was_member(found.id)
            moved = self.index.slots_of(found.id) if found.kind is Kind.DIRECTORY else ()
            self.index.bind(slot, found.id, found.kind)
            for previous in moved:  # a directory has one name: its old slot is empty until something else shows there
                self._follow(self._due, previous, due, force=True)
            if found.kind is Kind.DIRECTORY and (not member or self._exclude.by_path):
                self._list_below(found.id, due, changes, member)
            if not member:
                changes.members.append((found.id, due))
            if again:
                changes.returned.append(found.id)
        self._dying_no_more(found)
        if due.force or (found.id if found else None) != old:
            due.before = old
            changes.slots.append((slot, due))
        else:
            self._generations.release(due.generation)

    def _list_below(self, directory: FileId, due: Due, changes: Changes, member: bool) -> None:
        below = [directory]
        if member:  # what is excluded below may have changed with its path
            below += [id for id in self.index.subtree(directory) if self.index.is_directory(id)]
        for id in dict.fromkeys(below):
            self._follow(self._lists, id, due)
            self._lists[id].numbers = False
            changes.lists.append(id)

    def _dying_no_more(self, found: Found | None) -> None:
        due = self._dying.pop(found.id, None) if found is not None else None
        if due is not None:
            self._generations.release(due.generation)

    def _bury(self, view: Namespace, changes: Changes) -> None:
        """Give up the dying, after every look from before: one may find a new name in a directory not listed yet.

        A removed directory was empty, so what the index still has in it is looked at first.
        """
        if not self._dying:
            return
        waiting = [due.order for queue in (self._due, self._lists) for due in queue.values()]
        waiting += [hold.due.order for hold in self._held.values()]  # what is held may be the way to such a directory
        first = min(waiting, default=self._order + 1)
        for id in [id for id, due in self._dying.items() if due.order < first and id not in self._awaited]:
            due = self._dying[id]
            if self.index.is_directory(id) and self.index.children(id) and not _may_live(view, id):
                for name in self.index.children(id):
                    if Slot(id, name) not in self._held:
                        self._follow(self._due, Slot(id, name), due)
                continue
            del self._dying[id]
            changes.tops.add(id)
            for lost, kind in self.index.forget(id).items():
                if lost != id:
                    due = Due(self._generations.hold(due.generation), due.since)
                changes.dead.append((lost, due))
                if kind is Kind.DIRECTORY:
                    changes.buried.append(lost)


def _may_live(view: Namespace, id: FileId) -> bool:
    """An inode that cannot be looked at is not dead."""
    try:
        return view.alive(id)
    except OSError:
        return True

"""The planner: from facts and the inventory to steps. Pure; the only place that decides in which order names change.

    plan(facts, view) -> Plan(steps, needs, looks, doubts)

Promises, for a View that tells the truth and steps taken in order: no step removes the last name of an inode that is
not in `facts.dead`; a slot that has a file before and after never is empty between; an inode gets a name in the tree
only when its content is complete; no directory is cut off from the root by a cycle. What cannot be yet becomes a
look (the slot keeps its old occupant) or a need. An epoch planned again after part of its steps were taken gives the
remaining ones.

Order: new inodes into limbo; bytes of what gets a name; directories, parents first; other names; what no fact wants any
more; bytes and attributes of all other known inodes; the dead; directories' times.
"""

from __future__ import annotations

from replicator.blocks import COMPARED_FROM
from replicator.mirror.names import Names
from replicator.mirror.placement import Placement
from replicator.mirror.records import after_adorn, after_create, after_write, doubted, is_lost, matches, moves_bytes
from replicator.mirror.steps import (
    LIMBO,
    Adorn,
    Create,
    Doubt,
    Plan,
    Record,
    Rename,
    Rmdir,
    Stamp,
    View,
    Write,
    limbo_place,
)
from replicator.mirror.trust import check_facts
from replicator.mirror.wishes import Wishes
from replicator.model import Facts, FileId, InodeFact, Kind, Slot


def plan(facts: Facts, view: View, *, checked: bool = False) -> Plan:
    """The steps that make the replica agree with `facts`. RemoteError if no honest sender could have sent them, unless
    that was `checked`."""
    if not checked:
        check_facts(facts, view)
    return _Planner(facts, view).run()


class _Planner:
    """One epoch. `names` is the replica as it will be after the steps planned so far."""

    def __init__(self, facts: Facts, view: View) -> None:
        self.facts = facts
        self.names = Names(view)
        self.plan = Plan()
        bound = {fact.id for fact in facts.slots if fact.id is not None}
        self._gaining = {fact.id for fact in facts.slots if fact.id is not None and view.bound(fact.slot) != fact.id}
        self.dead = {id for id in facts.dead if id not in bound}
        self._plain = self._plain_births(view)
        self._early: list[Write | Adorn | Doubt] = []
        self._late: list[Write | Adorn] = []

    def run(self) -> Plan:
        """All of it."""
        plain = self._plain
        for index, fact in enumerate(self.facts.inodes):
            if fact.id in plain:
                self.plan.steps.append(Create(fact.id, index))
            elif fact.id not in self.dead:
                self._inode(index, fact)
        self.plan.steps.extend(self._early)
        wishes = Wishes(self.names, self.plan, self._bindable)
        wishes.take([fact for fact in self.facts.slots if fact.id not in plain] if plain else self.facts.slots)
        placement = Placement(self.names, self.plan, wishes, self.dead)
        placement.run([Rename(id, limbo_place(id), slot) for id, slot in plain.items()])
        self.plan.steps.extend(self._late)
        self._bury(placement, wishes)
        self._stamp(placement.renamed_in)
        return self.plan

    def _plain_births(self, view: View) -> dict[FileId, Slot]:
        """New files, whole, with one name, where nothing was and nothing else is to be: of a tree that is new these are
        nearly all, and what decides about names has nothing to decide."""
        facts = self.facts
        if not facts.slots or not facts.inodes:
            return {}
        wanted: dict[FileId, Slot | None] = {}
        claims: dict[Slot, int] = {}
        for fact in facts.slots:
            claims[fact.slot] = claims.get(fact.slot, 0) + 1
            if fact.id is not None:
                wanted[fact.id] = None if fact.id in wanted else fact.slot
        found: dict[FileId, Slot] = {}
        seen: set[FileId] = set()
        directories = {fact.id for fact in facts.inodes if fact.kind is Kind.DIRECTORY}
        for inode in facts.inodes:
            id = inode.id
            at = wanted.get(id)
            if id in seen:
                found.pop(id, None)
            elif (
                at is not None
                and inode.kind is Kind.FILE
                and inode.whole
                and not inode.partial
                and not inode.check
                and claims[at] == 1
                and view.record(id) is None
                and view.bound(at) is None
                and at.parent not in self.dead
                and (at.parent in directories or view.record(at.parent) is not None)
            ):
                found[id] = at
            seen.add(id)
        return found

    def _inode(self, index: int, fact: InodeFact) -> None:
        """Stage a new inode, or note what a known one gets; a need if what came is not enough."""
        record = self.names.record(fact.id)
        if record is None:
            self._stage(index, fact)
            return
        if fact.kind is not Kind.FILE:
            self._later(record, Adorn(fact.id, index), fact)
            return
        if fact.check:
            if not fact.deep and matches(record, fact):
                self._later(record, Adorn(fact.id, index), fact)
            elif fact.size >= COMPARED_FROM and self._visible(fact.id):
                self._early.append(Doubt(fact.id))
                self.names.set_record(fact.id, doubted(record))
                self.plan.doubts[fact.id] = None
            else:
                self.plan.needs[fact.id] = None
            return
        if is_lost(record) and not fact.whole:
            self.plan.needs[fact.id] = None
            return
        if moves_bytes(record, fact):
            record = after_write(record, fact)
            self._later(record, Write(fact.id, index), fact)
        if not fact.partial:
            self._later(record, Adorn(fact.id, index), fact)

    def _stage(self, index: int, fact: InodeFact) -> None:
        empty = fact.check and fact.size == 0
        if fact.kind is Kind.FILE and not empty and (fact.check or not fact.whole):
            self.plan.needs[fact.id] = None
            return
        step = Create(fact.id, index)
        self.plan.steps.append(step)
        self.names.set_record(fact.id, after_create(fact))
        self.names.bind(step.place, fact.id)

    def _later(self, record: Record, step: Write | Adorn, fact: InodeFact) -> None:
        """What gets a name must be ready before it does; all else follows the names."""
        self.names.set_record(fact.id, after_adorn(record, fact) if isinstance(step, Adorn) else record)
        if fact.kind is Kind.FILE and (not self._visible(fact.id) or fact.id in self._gaining):
            self._early.append(step)
        else:
            self._late.append(step)

    def _bindable(self, id: FileId) -> bool:
        """Whether a name may mean it: its content is complete, or it can be seen in the tree already."""
        record = self.names.record(id)
        if record is None:
            return False
        return record.complete or self._visible(id)

    def _visible(self, id: FileId) -> bool:
        """Whether it has a name in the tree."""
        return any(place.parent != LIMBO for place in self.names.places(id))

    def _bury(self, placement: Placement, wishes: Wishes) -> None:
        """Destroy what is dead, deepest first; what a dead directory still holds and is not dead goes to limbo."""
        directories: list[tuple[int, FileId]] = []
        for id in sorted(self.dead):
            record = self.names.record(id)
            if record is None:
                continue
            for place in self.names.places(id):
                if place.parent != LIMBO and place not in wishes.want:
                    self.plan.looks[place] = None
            if record.kind is Kind.DIRECTORY:
                directories.append((sum(1 for _ in self.names.ancestry(id)), id))
                continue
            for place in list(self.names.places(id)):
                placement.drop(id, place)
        for _, id in sorted(directories, reverse=True):
            for name, child in list(self.names.children(id)):
                placement.drop(child, Slot(id, name))
            at = self.names.place_of(id)
            assert at is not None
            placement.emit(Rmdir(id, at))

    def _stamp(self, renamed_in: dict[FileId, None]) -> None:
        for directory in renamed_in:
            if self.names.record(directory) is not None:
                self.plan.steps.append(Stamp(directory))

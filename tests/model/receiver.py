"""The receiver: the real planner over a simulated replica, with crashes between (and within) any two steps.

The inventory is what a process keeps in memory; `commit` makes it survive. Before the first step of an epoch its steps
are stored as an intent, so that after a crash the steps that were taken are recognised by what the names mean now.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace

from replicator.mirror import plan as planner
from replicator.mirror.records import after_adorn, after_create, after_write, doubted, forsaken
from replicator.mirror.steps import (
    LIMBO,
    Adorn,
    Create,
    Doubt,
    Exchange,
    Link,
    Plan,
    Record,
    Rename,
    Rmdir,
    Stamp,
    Step,
    Unlink,
    Write,
)
from replicator.model import Answer, Facts, FileId, InodeFact, Kind, Refusal, Slot
from replicator.source.epochs import Payload
from tests.model.disk import Disk, Inode


def _places(step: Step) -> list[Slot]:
    """The places outside limbo that a step names."""
    match step:
        case Rename(_, source, target) | Link(_, source, target) | Exchange(_, source, target):
            named = [source, target]
        case Unlink(_, place) | Rmdir(_, place):
            named = [place]
        case _:
            named = []
    return [place for place in named if place.parent != LIMBO]


class Crash(Exception):
    """The receiver's process dies here."""


class Fault(AssertionError):
    """The project's logic did what it must never do."""


@dataclass(slots=True)
class Inventory:
    """id ↔ inode of the replica, places, records: the View that the planner asks."""

    root: FileId
    records: dict[FileId, Record] = field(default_factory=dict)
    inodes: dict[FileId, Inode] = field(default_factory=dict)
    names: dict[Slot, FileId] = field(default_factory=dict)
    held: dict[FileId, dict[Slot, None]] = field(default_factory=dict)

    def copy(self) -> Inventory:
        held = {id: dict(places) for id, places in self.held.items()}
        return Inventory(self.root, dict(self.records), dict(self.inodes), dict(self.names), held)

    def record(self, id: FileId) -> Record | None:
        return self.records.get(id)

    def bound(self, place: Slot) -> FileId | None:
        return self.names.get(place)

    def places(self, id: FileId) -> Collection[Slot]:
        return list(self.held.get(id, ()))

    def children(self, directory: FileId) -> Iterable[tuple[bytes, FileId]]:
        return [(slot.name, id) for slot, id in self.names.items() if slot.parent == directory]

    def bind(self, place: Slot, id: FileId) -> None:
        if place in self.names:
            raise Fault(f"{place} is taken")
        self.names[place] = id
        self.held.setdefault(id, {})[place] = None

    def unbind(self, place: Slot) -> FileId:
        id = self.names.pop(place)
        del self.held[id][place]
        return id

    def drop(self, id: FileId) -> None:
        del self.records[id], self.inodes[id]
        self.held.pop(id, None)

    def take(self, step: Step, facts: Facts) -> None:
        """The effect of a step, as the planner's vocabulary defines it."""
        match step:
            case Create(id, index):
                self.records[id] = after_create(facts.inodes[index])
                self.bind(step.place, id)
            case Rename(id, source, target):
                self.unbind(source)
                self.bind(target, id)
            case Link(id, _, target):
                self.bind(target, id)
            case Exchange(id, source, target, other):
                self.unbind(source)
                self.unbind(target)
                self.bind(source, other)
                self.bind(target, id)
            case Unlink(id, place, _) | Rmdir(id, place):
                self.unbind(place)
                if not self.held[id]:
                    self.drop(id)
            case Write(id, index):
                self.records[id] = after_write(self.records[id], facts.inodes[index])
            case Adorn(id, index):
                self.records[id] = after_adorn(self.records[id], facts.inodes[index])
            case Doubt(id):
                self.records[id] = doubted(self.records[id])
            case Stamp():
                pass


class Receiver:
    """Applies epochs, answers, commits, crashes and recovers."""

    def __init__(
        self, root: FileId, rng: random.Random, precious: Callable[[FileId], bool], note: Callable[[str], None]
    ) -> None:
        """`precious` tells of an id whether the source has had it in its tree without a break."""
        self.disk = Disk()
        self.inventory = Inventory(root)
        self.inventory.records[root] = Record(Kind.DIRECTORY)
        self.inventory.inodes[root] = self.disk.root
        self.applied = 0
        self._note = note
        self.crashes = 0
        self.refusing = 0.0
        """How probable it is that a step fails: the disk is full, a file immutable."""
        self._rng = rng
        self._precious = precious
        self._committed = self.inventory.copy()
        self._intents: list[tuple[Step, Facts]] = []
        self._made: dict[FileId, Inode] = {}
        """Inodes made since the last commit: stored before anything names them."""

    # ---- what the session asks

    def apply(self, facts: Facts, payload: Payload, crash_at: int | None = None) -> Answer:
        """Plan and take the steps; Crash before step `crash_at`, or within it."""
        plan: Plan = planner.plan(facts, self.inventory)
        self._intents += [(step, facts) for step in plan.steps]
        refusals: dict[FileId, Refusal] = {}
        before = {place: self.inventory.records[id].kind for place, id in self.inventory.names.items()}
        emptied: set[Slot] = set()
        for number, step in enumerate(plan.steps):
            within = crash_at == number and self._rng.random() < 0.5
            if crash_at == number and not within:
                raise Crash
            if self.refusing and not self._possible(step, facts):
                plan.looks.update(dict.fromkeys(_places(step)))
                continue
            if self.refusing and not isinstance(step, Stamp) and self._rng.random() < self.refusing:
                self._refuse(step, facts, payload)
                refusals[step.id] = Refusal(step.id, "no space left on device")
                plan.needs[step.id] = None
                plan.looks.update(dict.fromkeys(_places(step)))
                continue
            self._execute(step, facts, payload)
            if within:
                raise Crash
            self.inventory.take(step, facts)
            if isinstance(step, Create):
                self._made[step.id] = self.inventory.inodes[step.id]
            self._check(step)
            emptied.update(place for place in _places(step) if place not in self.inventory.names)
        if not refusals:
            self._never_missing(before, emptied)
        for dead in facts.dead:
            if refusals and self.inventory.record(dead) is not None:
                plan.needs[dead] = None  # what stood in its way was refused: say so, or nobody buries it
        self.applied = facts.epoch
        if plan.needs or plan.looks:
            self._note(f"    needs {list(plan.needs)} looks {list(plan.looks)} refused {list(refusals)}")
        doubts = tuple(id for id in plan.doubts if id not in plan.needs)
        return Answer(facts.epoch, tuple(plan.needs), tuple(plan.looks), tuple(refusals.values()), doubts)

    def names(self, directory: FileId) -> dict[bytes, FileId] | None:
        """The names in a directory and what they mean; None if it is not here."""
        if self.inventory.record(directory) is None:
            return None
        return dict(self.inventory.children(directory))

    def nameless(self) -> list[FileId]:
        """What waits in limbo."""
        return [id for _, id in self.inventory.children(LIMBO)]

    def commit(self) -> int:
        """All that is applied is durable; returns the last epoch."""
        self._committed = self.inventory.copy()
        self._intents.clear()
        self._made.clear()
        return self.applied

    def new_sender(self) -> None:
        """Another instance of the sender, which does not know what its predecessor owed."""
        for id, record in self.inventory.records.items():
            self.inventory.records[id] = forsaken(record)
        self.applied = 0
        self.commit()

    def recover(self) -> None:
        """A new process: the committed inventory, the intents, and what the names mean now."""
        self.crashes += 1
        made: dict[FileId, Record] = {}
        touched: set[FileId] = set()
        for step, facts in self._intents:
            if isinstance(step, Create):
                made[step.id] = after_create(facts.inodes[step.fact])
            elif isinstance(step, Write):
                touched.add(step.id)
        old, new = self._committed, Inventory(self._committed.root)
        ids = {id(inode): key for known in (old.inodes, self._made) for key, inode in known.items()}
        for name, inode in list(self.disk.limbo.names.items()):
            if id(inode) not in ids:  # the crash was within its making: nobody knows it
                del self.disk.limbo.names[name]
        found = [(LIMBO, name, inode) for name, inode in self.disk.limbo.names.items()]
        for top in (self.disk.root, *self.disk.limbo.names.values()):
            found += [(ids[id(directory)], name, inode) for directory, name, inode in self.disk.walk(top)]
        for at, name, inode in found:
            new.bind(Slot(at, name), ids[id(inode)])
            new.inodes[ids[id(inode)]] = inode
        new.inodes[new.root] = self.disk.root
        for key in new.inodes:
            record = old.records.get(key) or made[key]
            new.records[key] = replace(record, suspect=True) if key in touched and record.complete else record
        self.inventory = new
        self.commit()

    # ---- steps on the disk

    def _execute(self, step: Step, facts: Facts, payload: Payload) -> None:
        self._note(f"    {step}")
        disk = self.disk
        match step:
            case Create(id, index):
                fact = facts.inodes[index]
                inode = disk.make(disk.limbo, step.place.name, fact.kind)
                self.inventory.inodes[id] = inode
                inode.target = fact.attributes.target
                if fact.kind is Kind.FILE:
                    self._fill(inode, fact, index, payload)
                if not fact.partial:
                    self._adorn(inode, fact)
            case Rename(id, source, target):
                self._expect(source, id)
                disk.rename(self._directory(source), source.name, self._directory(target), target.name)
            case Link(id, source, target):
                self._expect(source, id)
                disk.link(self._directory(source), source.name, self._directory(target), target.name)
            case Exchange(id, source, target, other):
                self._expect(source, id)
                self._expect(target, other)
                disk.exchange(self._directory(source), source.name, self._directory(target), target.name)
            case Unlink(id, place, final):
                self._expect(place, id)
                if len(self.inventory.places(id)) == 1:
                    if not final:
                        raise Fault(f"the last name of {id} is removed")
                    self._destroys(id)
                disk.unlink(self._directory(place), place.name)
            case Rmdir(id, place):
                self._expect(place, id)
                self._destroys(id)
                disk.rmdir(self._directory(place), place.name)
            case Write(id, index):
                self._fill(self._linked(id), facts.inodes[index], index, payload)
            case Adorn(id, index):
                self._adorn(self._linked(id), facts.inodes[index])
            case Stamp(id):
                record = self.inventory.record(id)
                if record is not None and record.mtime_ns != -1:
                    self.inventory.inodes[id].mtime_ns = record.mtime_ns

    def _possible(self, step: Step, facts: Facts) -> bool:
        """Whether the names are as the step expects them, after others were refused."""
        known = self.inventory
        match step:
            case Create(id):
                return known.record(id) is None
            case Rename(id, source, target) | Link(id, source, target):
                free = target.parent == LIMBO or known.record(target.parent) is not None
                return known.bound(source) == id and known.bound(target) is None and free
            case Exchange(id, source, target, other):
                return known.bound(source) == id and known.bound(target) == other
            case Unlink(id, place, final):
                return known.bound(place) == id and (final or len(known.places(id)) > 1)
            case Rmdir(id, place):
                return known.bound(place) == id and not known.children(id)
            case Adorn(id, index):
                record = known.record(id)
                return record is not None and (facts.inodes[index].kind is not Kind.FILE or record.sound)
            case Write(id) | Doubt(id) | Stamp(id):
                return known.record(id) is not None

    def _refuse(self, step: Step, facts: Facts, payload: Payload) -> None:
        """What a step that fails halfway leaves behind."""
        known = self.inventory
        record = known.record(step.id)
        if isinstance(step, Write) and record is not None:
            fact = facts.inodes[step.fact]
            if fact.lowest is not None:
                self.disk.truncate(known.inodes[step.id], 0)
            known.records[step.id] = replace(record, complete=False, suspect=True, mtime_ns=-1, ctime_ns=None)
        elif isinstance(step, Adorn) and record is not None:
            known.records[step.id] = replace(record, mtime_ns=-1, ctime_ns=None)

    def _fill(self, inode: Inode, fact: InodeFact, index: int, payload: Payload) -> None:
        if fact.lowest is not None and fact.lowest < len(inode.data):
            self.disk.truncate(inode, fact.lowest)
        for hole in fact.holes:
            self.disk.punch(inode, hole.offset, hole.length)
        for at, offset, data in payload:
            if at == index:
                self.disk.write(inode, offset, data)
        if not fact.partial:
            self.disk.truncate(inode, fact.size)

    def _adorn(self, inode: Inode, fact: InodeFact) -> None:
        attributes = fact.attributes
        inode.mode = attributes.mode
        inode.owner = (attributes.uid, attributes.gid)
        inode.xattrs = dict(attributes.xattrs)
        inode.mtime_ns = attributes.mtime_ns

    def _directory(self, place: Slot) -> Inode:
        return self.disk.limbo if place.parent == LIMBO else self.inventory.inodes[place.parent]

    def _expect(self, place: Slot, id: FileId) -> None:
        if self._directory(place).names.get(place.name) is not self.inventory.inodes.get(id):
            raise Fault(f"{place} is not {id}")

    def _linked(self, id: FileId) -> Inode:
        inode = self.inventory.inodes[id]
        if id != self.inventory.root and inode.nlink != len(self.inventory.places(id)):
            raise Fault(f"{id} has {inode.nlink} names, {len(self.inventory.places(id))} are known")
        return inode

    def _destroys(self, id: FileId) -> None:
        if self._precious(id):
            raise Fault(f"{id} is destroyed, but has been in the source all the time")

    def _check(self, step: Step) -> None:
        if isinstance(step, Rename | Exchange | Rmdir | Unlink) and not self._rooted():
            raise Fault(f"{step} cut a directory off")

    def _never_missing(self, before: dict[Slot, Kind], emptied: set[Slot]) -> None:
        """A name that means a file before and after an epoch was there all the time."""
        for place in emptied:
            now = self.inventory.names.get(place)
            if now is None or place not in before:
                continue
            if Kind.DIRECTORY not in (before[place], self.inventory.records[now].kind):
                raise Fault(f"{place} was empty between two files")

    def _rooted(self) -> bool:
        """Every directory leads to the root or to limbo."""
        for inode in self.inventory.inodes.values():
            here, hops = inode, 0
            if inode.kind is not Kind.DIRECTORY:
                continue
            while here is not self.disk.root and here is not self.disk.limbo:
                if here.parent is None or hops > 50:
                    return False
                here, hops = here.parent, hops + 1
        return True

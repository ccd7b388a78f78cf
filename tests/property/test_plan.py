"""The planner against a strict simulated filesystem: whatever happens in the source, in whatever order it is told, with
the process dying after any step, the replica converges and nothing that lives is destroyed."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.errors import RemoteError
from replicator.mirror.names import Names
from replicator.mirror.plan import plan
from replicator.mirror.records import after_adorn, after_create, after_write
from replicator.mirror.steps import LIMBO, Adorn, Create, Exchange, Link, Record, Rename, Rmdir, Step, Unlink, Write
from replicator.model import Answer, Attributes, Facts, FileId, InodeFact, Kind, Slot, SlotFact

ROOT = FileId(0, 0, 2, 0)
NAMES = [b"a", b"b", b"c"]
ATTRIBUTES = Attributes(0o644, 0, 0, 1, 1)


class Nothing:
    """The inventory of an empty replica."""

    root = ROOT

    def record(self, id: FileId) -> Record | None:
        return Record(Kind.DIRECTORY) if id == ROOT else None

    def bound(self, place: Slot) -> FileId | None:
        return None

    def places(self, id: FileId) -> Collection[Slot]:
        return ()

    def children(self, directory: FileId) -> Iterable[tuple[bytes, FileId]]:
        return ()


class Source:
    """A tree that changes at random, as a kernel would let it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.names: dict[Slot, FileId] = {}
        self.kinds: dict[FileId, Kind] = {ROOT: Kind.DIRECTORY}
        self.dead: set[FileId] = set()
        self.dirty: dict[Slot, None] = {}
        self._next = 10

    def directories(self) -> list[FileId]:
        return [id for id, kind in self.kinds.items() if kind is Kind.DIRECTORY and id not in self.dead]

    def under(self, top: FileId, id: FileId) -> bool:
        """Whether `id` is `top` or beneath it."""
        while id != top:
            if id == ROOT:
                return False
            id = next(slot.parent for slot, named in self.names.items() if named == id)
        return True

    def set(self, slot: Slot, id: FileId | None) -> None:
        if id is None:
            del self.names[slot]
        else:
            self.names[slot] = id
        self.dirty[slot] = None

    def change(self) -> None:
        rng = self.rng
        slot = Slot(rng.choice(self.directories()), rng.choice(NAMES))
        other = Slot(rng.choice(self.directories()), rng.choice(NAMES))
        here, there = self.names.get(slot), self.names.get(other)
        what = rng.random()
        if here is None:
            if what < 0.3 and there is not None and self.kinds[there] is Kind.FILE:
                self.set(slot, there)
                return
            self._next += 1
            # Inode numbers are reused at once; the generation tells them apart.
            id = FileId(0, 0, 10 + self._next % 4, self._next)
            self.kinds[id] = Kind.DIRECTORY if what < 0.6 else Kind.FILE
            self.set(slot, id)
        elif what < 0.25:
            if self.kinds[here] is Kind.FILE or not self.children(here):
                self.set(slot, None)
                self.bury(here)
        elif what < 0.5 and there is not None:
            if not self.under_either(slot, here, other, there):
                self.set(slot, there)
                self.set(other, here)
        elif not (self.kinds[here] is Kind.DIRECTORY and self.under(here, other.parent)):
            if here == there or (there is not None and not self.replaceable(here, there)):
                return
            self.set(slot, None)
            self.set(other, here)
            if there is not None:
                self.bury(there)

    def children(self, id: FileId) -> list[Slot]:
        return [slot for slot in self.names if slot.parent == id]

    def under_either(self, slot: Slot, here: FileId, other: Slot, there: FileId) -> bool:
        return self.under(here, other.parent) or self.under(there, slot.parent)

    def replaceable(self, here: FileId, there: FileId) -> bool:
        return self.kinds[here] is self.kinds[there] and not self.children(there)

    def bury(self, id: FileId) -> None:
        if id not in self.names.values():
            self.dead.add(id)


class Replica:
    """Takes steps one by one and refuses what a kernel would refuse, and what rule 2 forbids."""

    def __init__(self) -> None:
        self.names = Names(Nothing())

    def take(self, step: Step, facts: Facts) -> None:
        names = self.names
        match step:
            case Create(id, index):
                assert names.record(id) is None
                names.set_record(id, after_create(facts.inodes[index]))
                self._free(step.place)
                names.bind(step.place, id)
            case Write(id, index):
                names.set_record(id, after_write(self._known(id), facts.inodes[index]))
            case Adorn(id, index):
                names.set_record(id, after_adorn(self._known(id), facts.inodes[index]))
            case Rename(id, source, target):
                self._is(source, id)
                self._free(target)
                self._movable(id, target)
                names.take(step)
            case Link(id, source, target):
                self._is(source, id)
                self._free(target)
                assert not names.is_directory(id)
                self._movable(id, target)
                names.take(step)
            case Exchange(id, source, target, other):
                self._is(source, id)
                self._is(target, other)
                self._movable(id, target)
                self._movable(other, source)
                names.take(step)
            case Unlink(id, place):
                self._is(place, id)
                assert not names.is_directory(id)
                assert len(names.places(id)) > 1 or id in facts.dead, "a living inode is destroyed"
                names.take(step)
            case Rmdir(id, place):
                self._is(place, id)
                assert not list(names.children(id))
                assert id in facts.dead, "a living directory is destroyed"
                names.take(step)

    def visible(self) -> dict[Slot, FileId]:
        """The tree below the root."""
        found: dict[Slot, FileId] = {}
        queue = [ROOT]
        while queue:
            at = queue.pop()
            for name, id in self.names.children(at):
                found[Slot(at, name)] = id
                if self.names.is_directory(id):
                    queue.append(id)
        return found

    def _known(self, id: FileId) -> Record:
        record = self.names.record(id)
        assert record is not None
        return record

    def _is(self, place: Slot, id: FileId) -> None:
        assert self.names.bound(place) == id

    def _free(self, place: Slot) -> None:
        assert self.names.bound(place) is None

    def _movable(self, id: FileId, target: Slot) -> None:
        if target.parent != LIMBO:
            assert self._known(id).complete, "half a file gets a name"
            assert self.names.is_directory(target.parent)
            assert id not in self.names.ancestry(target.parent), "a directory moves into itself"


def fact_of(source: Source, id: FileId) -> InodeFact:
    kind = source.kinds[id]
    return InodeFact(id, kind, ATTRIBUTES, size=5 if kind is Kind.FILE else 0, whole=True)


class Sender:
    """Looks at dirty slots in any order, and tells what it finds there at that moment."""

    def __init__(self, source: Source, rng: random.Random) -> None:
        self.source = source
        self.rng = rng
        self.owed: dict[FileId, None] = {}
        self.buried: set[FileId] = set()
        self.epoch = 0

    def flush(self, replica: Replica, everything: bool, crash: bool) -> bool:
        """One epoch; whether there was anything to tell."""
        source, rng = self.source, self.rng
        slots = list(source.dirty)
        rng.shuffle(slots)
        if not everything:
            slots = slots[: rng.randint(0, len(slots))]
        dead = sorted(source.dead - self.buried)
        if not everything:
            dead = [id for id in dead if rng.random() < 0.5]
        slot_facts = [SlotFact(slot, source.names.get(slot)) for slot in slots]
        targets = dict.fromkeys(fact.id for fact in slot_facts if fact.id is not None)
        # What the sender believes to have arrived it does not send again; it may be wrong.
        inodes = [id for id in targets if id in self.owed or rng.random() < 0.6]
        inodes += [id for id in self.owed if id not in targets and id not in source.dead]
        rng.shuffle(inodes)
        self.epoch += 1
        facts = Facts(self.epoch, tuple(slot_facts), tuple(fact_of(source, id) for id in inodes), tuple(dead))
        if not (slot_facts or inodes or dead):
            return False
        planned = plan(facts, replica.names)
        steps = planned.steps
        stop = rng.randint(0, len(steps)) if crash else len(steps)
        occupied = {slot for slot in replica.visible() if not replica.names.is_directory(replica.visible()[slot])}
        gaps: set[Slot] = set()
        for step in steps[:stop]:
            replica.take(step, facts)
            gaps |= {slot for slot in occupied if replica.names.bound(slot) is None}
        if crash:
            return True
        after = replica.visible()
        for slot in gaps & occupied & after.keys():
            assert replica.names.is_directory(after[slot]), "a slot was empty while its file was replaced"
        for slot in slots:
            del source.dirty[slot]
        self.buried.update(dead)
        self.owed = {}
        self.hear(Answer(self.epoch, tuple(planned.needs), tuple(planned.looks)))
        return True

    def hear(self, answer: Answer) -> None:
        source = self.source
        source.dirty.update(dict.fromkeys(answer.looks))
        for id in answer.needs:
            if id in source.dead:
                continue
            self.owed[id] = None
            source.dirty.update(
                dict.fromkeys(slot for slot, named in source.names.items() if id in (named, slot.parent))
            )


@settings(max_examples=600, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**48))
def test_any_order_converges_and_destroys_nothing(seed: int) -> None:
    rng = random.Random(seed)
    source, replica = Source(rng), Replica()
    sender = Sender(source, rng)
    for _ in range(rng.randint(1, 12)):
        for _ in range(rng.randint(0, 8)):
            source.change()
        sender.flush(replica, everything=rng.random() < 0.2, crash=rng.random() < 0.3)
        source_living = {id for id in source.kinds if id not in source.dead}
        for id in source_living & set(replica.visible().values()):
            assert replica.names.record(id) is not None
    rounds = 0
    while sender.flush(replica, everything=True, crash=False):
        rounds += 1
        assert rounds < 60, "never quiet"
    assert replica.visible() == source.names
    assert not list(replica.names.children(LIMBO)), "something is left in limbo"


def test_a_peer_that_lies_is_refused() -> None:
    nothing = Nothing()
    for facts in (
        Facts(1, slots=(SlotFact(Slot(ROOT, b"../x"), None),)),
        Facts(1, slots=(SlotFact(Slot(ROOT, b".."), None),)),
        Facts(1, slots=(SlotFact(Slot(LIMBO, b"x"), None),)),
        Facts(1, slots=(SlotFact(Slot(ROOT, b"x"), ROOT),)),
        Facts(1, dead=(ROOT,)),
        Facts(1, inodes=(InodeFact(ROOT, Kind.FILE, ATTRIBUTES, 0),)),
    ):
        with pytest.raises(RemoteError):
            plan(facts, nothing)

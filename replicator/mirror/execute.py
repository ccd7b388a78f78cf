"""From steps to system calls: one epoch carried out.

Takes a plan with its facts and bytes; changes the tree beneath the root and the inventory with it. A step is taken only
if inventory and disk agree that its places are as it expects; a step found done counts as done. What one file cannot
have (a full disk, an immutable flag) becomes a refusal and a need, and the rest goes on. Only a failing inventory
raises.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from replicator.mirror import attributes
from replicator.mirror.birth import Births
from replicator.mirror.brood import TOGETHER, Brood
from replicator.mirror.content import Piece, write_in_place
from replicator.mirror.durability import write_out
from replicator.mirror.foreign import Foreign
from replicator.mirror.ground import AstrayError, Ground
from replicator.mirror.intents import Intent, IntentLog
from replicator.mirror.inventory import Inventory
from replicator.mirror.limbo import Limbo
from replicator.mirror.naming import NamingSteps, SkippedError, places_of
from replicator.mirror.records import after_adorn, after_create, after_write, doubted, lost
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
from replicator.model import Answer, Facts, FileId, Kind, Refusal, Slot


class Executor:
    """Carries out epochs, one after the other."""

    def __init__(self, ground: Ground, limbo: Limbo, inventory: Inventory, intents: IntentLog) -> None:
        self._ground = ground
        self._limbo = limbo
        self._inventory = inventory
        self._intents = intents
        self._foreign = Foreign(ground, limbo, inventory)
        self._naming = NamingSteps(ground, limbo, inventory, self._foreign)
        self._births = Births(ground, limbo, inventory, intents)
        self._brood = Brood(ground, inventory, intents)

    def run(self, facts: Facts, pieces: dict[int, list[Piece]], plan: Plan) -> Answer:
        """Take all steps. `pieces` are the bytes of facts.inodes[index], checked to be what the fact announces."""
        run = _Run(facts, pieces, plan)
        run.wanted = {fact.slot.name for fact in facts.slots if fact.slot.parent == self._inventory.root}
        brood = self._brood.of(facts, plan.steps)
        self._prepare_limbo(run, brood)
        made = 0
        for step in plan.steps:
            if not isinstance(step, Create):
                break
            if step.id not in brood:
                self._guarded(run, step)
            made += 1
        if not self._announce(run, self._intent(run, brood), plan.steps[made:]):
            return self._answer(run)
        displacing = [step for step in plan.steps[made:] if isinstance(step, Exchange)]
        at = made
        while at < len(plan.steps):
            step = plan.steps[at]
            if displacing and isinstance(step, Exchange | Rename | Link | Unlink | Rmdir):
                self._write_out(run, displacing)  # the bytes of what gets a name are all there by now
                displacing = []
            at += 1
            if step.id not in brood or not isinstance(step, Rename):
                self._guarded(run, step)
                continue
            together = [(step, brood[step.id])]
            while at < len(plan.steps) and isinstance(step := plan.steps[at], Rename) and step.id in brood:
                together.append((step, brood[step.id]))
                at += 1
            self._bring_forth(run, together)
        self._restore_root()
        return self._answer(run)

    def _announce(self, run: _Run, intent: Intent, steps: Sequence[Step]) -> bool:
        """Write an intent; if that cannot be, refuse the steps that it is about."""
        try:
            if intent.places or intent.touched or intent.made or steps:
                self._intents.append(intent)
        except OSError as error:
            for step in steps:
                if not isinstance(step, Stamp):
                    self._refuse(run, step, f"intent log: {error.strerror}")
            return False
        return True

    def _bring_forth(self, run: _Run, births: list[tuple[Rename, Create]]) -> None:
        """New files straight into their places; those for which that does not do, by way of limbo."""
        for start in range(0, len(births), TOGETHER):
            some = births[start : start + TOGETHER]
            left = self._brood.make(run.facts, run.pieces, some)
            if not left:
                continue
            try:
                self._limbo.ensure(run.wanted)
            except OSError as error:
                run.limbo_error = error
            for _, create in left:
                self._guarded(run, create)
            steps = [rename for rename, _ in left]
            if self._announce(run, self._intent_of(run, [*(create for _, create in left), *steps]), steps):
                for step in steps:
                    self._guarded(run, step)

    def _answer(self, run: _Run) -> Answer:
        plan = run.plan
        bound = {fact.id for fact in run.facts.slots}
        for id in run.facts.dead:  # one that could not be given up must be declared dead again
            if id not in bound and self._inventory.record(id) is not None:
                plan.needs[id] = None
        doubts = tuple(id for id in plan.doubts if id not in plan.needs)
        return Answer(run.facts.epoch, tuple(plan.needs), tuple(plan.looks), tuple(run.refusals.values()), doubts)

    def verify_bound(self, slot: Slot, id: FileId, plan_needs: dict[FileId, None], looks: dict[Slot, None]) -> None:
        """A name that the inventory has already: if the disk has not, forget it, so that it is made again."""
        try:
            if self._ground.holds(slot, id):
                return
        except AstrayError as error:
            self._astray(error, plan_needs, looks)
            return
        except OSError:
            return
        self._astray(AstrayError(id, slot), plan_needs, looks)

    def _prepare_limbo(self, run: _Run, brood: Container[FileId]) -> None:
        used = any(
            place.parent == LIMBO for step in run.plan.steps for place in places_of(step) if step.id not in brood
        )
        if used or (self._limbo.name in run.wanted and self._ground.limbo_fd is not None):
            try:
                self._limbo.ensure(run.wanted)
            except OSError as error:
                run.limbo_error = error

    def _intent(self, run: _Run, brood: Container[FileId]) -> Intent:
        return self._intent_of(run, [step for step in run.plan.steps if step.id not in brood])

    def _intent_of(self, run: _Run, steps: Iterable[Step]) -> Intent:
        intent = Intent(run.facts.epoch)
        places: dict[Slot, None] = {}
        for step in steps:
            match step:
                case Create(id):
                    record = self._inventory.record(id)
                    if record is not None:
                        intent.made.append((id, self._inventory.handle(id), record))
                case Write(id):
                    intent.touched.append(id)
            places.update(dict.fromkeys(places_of(step)))
        intent.places = list(places)
        return intent

    def _write_out(self, run: _Run, steps: Sequence[Exchange]) -> None:
        """What is to take the name of another file in the tree must not be found empty there after a power cut."""
        with ExitStack() as stack:
            descriptors = []
            for step in steps:
                for id, place in ((step.id, step.target), (step.other, step.source)):
                    record = self._inventory.record(id)
                    if place.parent == LIMBO or record is None or record.kind is not Kind.FILE:
                        continue
                    if self._inventory.owes_time(id):  # else its bytes are durable
                        with contextlib.suppress(OSError, AstrayError):  # the step itself will find that out
                            descriptors.append(self._ground.open(id, os.O_RDONLY))
                            stack.callback(os.close, descriptors[-1])
            try:
                write_out(descriptors, self._ground.fstype)
            except OSError as error:
                run.unwritten = error

    def _guarded(self, run: _Run, step: Step) -> None:
        """One step; its trouble is its own."""
        plan = run.plan
        try:
            self._take(run, step)
        except SkippedError:
            self._look_again(run, step)
        except AstrayError as error:
            self._astray(error, plan.needs, plan.looks)
            if not isinstance(step, Stamp):
                plan.needs[step.id] = None
            self._look_again(run, step)
        except OSError as error:
            self._refuse(run, step, f"{type(step).__name__.lower()}: {error.strerror or error}")

    def _refuse(self, run: _Run, step: Step, reason: str) -> None:
        run.refusals.setdefault(step.id, Refusal(step.id, reason))
        run.plan.needs[step.id] = None
        self._look_again(run, step)

    def _look_again(self, run: _Run, step: Step) -> None:
        for place in places_of(step):
            if place.parent != LIMBO:
                run.plan.looks[place] = None

    def _take(self, run: _Run, step: Step) -> None:
        match step:
            case Create(id, index):
                if run.limbo_error is not None:
                    raise run.limbo_error
                fact = run.facts.inodes[index]
                handle = self._births.create(fact, run.pieces.get(index, []))
                self._inventory.put(id, after_create(fact), handle)
                self._inventory.bind(step.place, id)
                if fact.kind is Kind.FILE:
                    self._inventory.wrote(id)
                if fact.kind is Kind.FILE and fact.size and not fact.partial:
                    self._inventory.owe_time(id, fact.attributes.mtime_ns)
            case Exchange() if run.unwritten is not None:
                raise run.unwritten
            case Rename() | Link() | Exchange() | Unlink() | Rmdir():
                self._naming.take(step)
            case Write(id, index):
                self._write(run, id, index)
            case Adorn(id, index):
                self._adorn(run, id, index)
            case Doubt(id):
                record = self._inventory.record(id)
                if record is None:
                    raise SkippedError
                self._inventory.put(id, doubted(record))
            case Stamp(id):
                self.stamp(id)

    def _write(self, run: _Run, id: FileId, index: int) -> None:
        inventory = self._inventory
        fact = run.facts.inodes[index]
        record = inventory.record(id)
        if record is None:
            raise SkippedError
        fd = self._ground.open(id, os.O_RDWR)
        try:
            if not fact.whole and self._is_foreign(id, record, os.fstat(fd)):
                self._distrust(run, id, record)
                return
            inventory.wrote(id)
            if os.fstat(fd).st_nlink != len(inventory.places(id)):
                fd = self._births.break_link(id, fd)
            try:
                write_in_place(fd, fact, run.pieces.get(index, []))
            except OSError:
                inventory.put(id, lost(record))
                with contextlib.suppress(OSError):  # what it has more than before is in the way of others
                    os.ftruncate(fd, min(record.size, os.fstat(fd).st_size))
                raise
        finally:
            os.close(fd)
        inventory.put(id, after_write(record, fact))
        run.written.add(id)

    def _adorn(self, run: _Run, id: FileId, index: int) -> None:
        inventory = self._inventory
        fact = run.facts.inodes[index]
        record = inventory.record(id)
        if record is None or (fact.kind is Kind.FILE and not record.sound):
            raise SkippedError
        fd = self._ground.open(id, os.O_PATH)
        try:
            wanted = fact.attributes
            changes = attributes.differ(fd, wanted)
            status = os.fstat(fd)
            late = id in run.written or inventory.owes_time(id)
            if not late and self._is_foreign(id, record, status):
                self._distrust(run, id, record)
                return
            shared = fact.kind is not Kind.DIRECTORY and status.st_nlink != len(inventory.places(id))
            if shared and (changes or status.st_mtime_ns != wanted.mtime_ns):
                fd = self._births.part(id, fact, fd)
                changes = True
                if fact.kind is Kind.FILE:  # a copy, whose bytes are as new as those of a write
                    inventory.wrote(id)
                    late = True
            if changes:
                attributes.apply(fd, wanted)
            if late:
                inventory.owe_time(id, wanted.mtime_ns)
            elif os.fstat(fd).st_mtime_ns != wanted.mtime_ns:
                attributes.set_time(fd, wanted.mtime_ns)
        except OSError:
            inventory.put(id, replace(record, mtime_ns=-1, ctime_ns=None))
            raise
        finally:
            os.close(fd)
        inventory.put(id, after_adorn(record, fact))

    def _is_foreign(self, id: FileId, record: Record, status: os.stat_result) -> bool:
        """Whether somebody else has changed the content of a regular file: size or time are not what was set last."""
        if record.kind is not Kind.FILE or not record.sound or record.mtime_ns == -1 or self._inventory.owes_time(id):
            return False
        return status.st_size != record.size or not attributes.shows(status.st_mtime_ns, record.mtime_ns)

    def _distrust(self, run: _Run, id: FileId, record: Record) -> None:
        self._inventory.put(id, lost(record))
        run.plan.needs[id] = None

    def stamp(self, id: FileId) -> None:
        """Set a directory's time to what it is to be."""
        record = self._inventory.record(id)
        if record is not None and record.mtime_ns != -1:
            attributes.set_time(self._ground.directory(id), record.mtime_ns)

    def rest(self) -> None:
        """Leave nothing of ours to be seen, not even in the root's times."""
        for name in self._limbo.listing():
            if self._inventory.bound(Slot(LIMBO, name)) is None:
                with contextlib.suppress(OSError):  # the next time, then
                    self._foreign.purge(self._ground.directory(LIMBO), name)
        self._limbo.rest()
        self._restore_root()

    def _restore_root(self) -> None:
        if self._limbo.touched_root:
            with contextlib.suppress(OSError):  # and again after the next epoch
                self.stamp(self._inventory.root)
                self._limbo.touched_root = False

    def _astray(self, error: AstrayError, needs: dict[FileId, None], looks: dict[Slot, None]) -> None:
        """Forget the names under which a known inode is not, and the inode if no name is left; ask for it again."""
        id = error.id
        if self._inventory.record(id) is None:
            return
        needs[id] = None
        missing = self._foreign.missing_places(id)
        with contextlib.suppress(OSError):  # a recovery would find it out at the next use
            self._intents.append(Intent(0, missing))
        for place in missing:
            if place.parent != LIMBO:
                looks[place] = None
            self._inventory.unbind(place, keep=True)
        if not self._inventory.places(id):
            self._forget(id, needs)

    def _forget(self, top: FileId, needs: dict[FileId, None]) -> None:
        """An inode that is nowhere, and all that was known to be beneath it."""
        queue = [top]
        while queue:
            id = queue.pop()
            for name, child in list(self._inventory.children(id)):
                self._inventory.unbind(Slot(id, name), keep=True)
                if not self._inventory.places(child):
                    needs[child] = None
                    queue.append(child)
            self._ground.let_go(id)
            self._inventory.forget(id)


class _Run:
    """What one epoch carries along."""

    def __init__(self, facts: Facts, pieces: dict[int, list[Piece]], plan: Plan) -> None:
        self.facts = facts
        self.pieces = pieces
        self.plan = plan
        self.refusals: dict[FileId, Refusal] = {}
        self.written: set[FileId] = set()
        self.wanted: set[bytes] = set()
        """Names in the root that facts are about."""
        self.limbo_error: OSError | None = None
        self.unwritten: OSError | None = None
        """Why bytes of what is to take others' names may not be on the disk."""

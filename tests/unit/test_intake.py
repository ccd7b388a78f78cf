"""What the kernel says of names and losses is looked at."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from replicator.capture.event import EVENT, EventFlag, EventKind, Events
from replicator.capture.names import ListLook
from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import Owed
from replicator.intake import LATE, SOON, Intake
from replicator.journal.journal import Journal
from replicator.journal.marks import Whole
from replicator.model import Answer, Attributes, FileId, InodeFact, Kind, Slot
from replicator.observe.metrics import SenderMetrics
from replicator.source import snapshot
from replicator.source.flight import Flush, Part
from replicator.source.outbox import Outbox
from replicator.tree.exclude import Exclude

ROOT, SUB, FILE, STRANGER = (FileId(0, 0, number, 1) for number in (2, 3, 12, 99))


class Sensor:
    """Gives what it was given."""

    tells_names = True

    def __init__(self) -> None:
        self.records: list[Events] = []
        self.told: list[bytes] = []
        self.lost: dict[str, int] = {}
        self.known: dict[str, int] = {}
        self.inodes: list[FileId] = []
        self.epoch = self.drained = 0

    def name(self, parent: FileId, name: bytes, target: FileId | None = None, flags: int = 0) -> None:
        made = np.zeros(1, EVENT)
        made["kind"], made["ts"], made["flags"] = int(EventKind.NAME), 5, flags
        made["fs"], made["root"], made["ino"], made["gen"] = parent
        if target is not None:
            made["off"], made["len"] = target.ino, target.gen | len(name) << 32
        self.records.append(made)
        self.told.append(name)

    def drain(self, limit: int) -> Events | None:
        if not self.records:
            return None
        records, self.records = np.concatenate(self.records), []
        self.drained += len(records)
        return records

    def few(self, most: int) -> tuple[list[tuple[int, ...]], bytes] | None:
        if self.told or not 0 < sum(map(len, self.records)) <= most:
            return None
        records = self.drain(most)
        assert records is not None
        return records.tolist(), records.tobytes()

    def produced(self) -> int:
        return self.drained + sum(map(len, self.records))

    def consumed(self) -> int:
        return self.drained

    def names(self) -> list[bytes]:
        told, self.told = self.told, []
        return told

    def advance(self) -> None:
        pass

    def losses(self) -> dict[str, int]:
        return self.lost

    def lost_inodes(self) -> list[FileId]:
        return list(self.inodes)

    def forget_lost(self, ids: Iterable[FileId]) -> None:
        self.inodes = [id for id in self.inodes if id not in ids]

    def acknowledged(self) -> dict[str, int]:
        return self.known

    def acknowledge(self, losses: dict[str, int]) -> None:
        assert not self.inodes, "what was lost is not known to the next process then"
        self.known = dict(losses)

    def fence(self) -> int:
        self.epoch += 1
        return self.epoch


class World:
    def __init__(self, directory: Path) -> None:
        self.sensor = Sensor()
        self.outbox = Outbox(ROOT, Exclude(()))
        index = self.outbox.index
        index.bind(Slot(ROOT, b"sub"), SUB, Kind.DIRECTORY)
        index.bind(Slot(ROOT, b"file"), FILE, Kind.FILE)
        index.bind(Slot(SUB, b"link"), FILE, Kind.FILE)
        self.surveys = 0
        box = self.outbox
        self.journal = Journal(directory / "journal", 1, box.generations, lambda: snapshot.marks(box), lambda: None)
        self.intake = self.another()

    def another(self) -> Intake:
        """Of a process that takes over."""
        return Intake(cast(Any, self.sensor), None, self.outbox, SenderMetrics(), self.journal, self.survey)

    def survey(self, content: bool) -> None:
        self.surveys += content

    @property
    def looks(self) -> set[Slot]:
        return set(self.outbox.resolver._due)

    @property
    def lists(self) -> set[FileId]:
        return set(self.outbox.resolver._lists)


def test_a_name_is_looked_at_and_its_directory_owes_its_times(scratch: Path) -> None:
    world = World(scratch)
    world.sensor.name(SUB, b"new", STRANGER)
    world.intake.take_records()
    assert world.looks == {Slot(SUB, b"new")}
    assert SUB in world.outbox.table


def test_names_outside_of_the_tree_are_nobodys_business(scratch: Path) -> None:
    world = World(scratch)
    world.sensor.name(STRANGER, b"new")
    world.intake.take_records()
    assert world.looks == set()
    assert len(world.outbox.table) == 0


def test_what_moved_is_looked_at_by_all_names_that_it_had_also_when_it_left_the_tree(scratch: Path) -> None:
    world = World(scratch)
    world.sensor.name(STRANGER, b"away", FILE, int(EventFlag.MOVED))
    world.intake.take_records()
    assert world.looks == {Slot(ROOT, b"file"), Slot(SUB, b"link")}


def test_any_name_means_the_whole_directory(scratch: Path) -> None:
    world = World(scratch)
    world.sensor.name(SUB, b"")
    world.intake.take_records()
    assert world.lists == {SUB}


def test_a_lost_record_of_a_directory_has_it_listed(scratch: Path) -> None:
    world = World(scratch)
    world.sensor.lost, world.sensor.inodes = {"ring_full": 2}, [SUB, FILE, STRANGER]
    world.intake.check_losses()
    assert world.lists == {SUB}
    owed = world.outbox.table.get(FILE)
    assert owed is not None
    assert owed.deep


def test_a_loss_is_acted_on_once_also_by_the_process_after(scratch: Path) -> None:
    world = World(scratch)
    world.sensor.lost, world.sensor.inodes = {"ring_full": 2, "recursion": 1}, [FILE]
    world.intake.check_losses()
    assert world.sensor.known == world.sensor.lost
    assert world.sensor.inodes == []
    read(world, FILE, time.monotonic_ns())
    for intake in (world.intake, world.another()):
        intake.check_losses()
        assert FILE not in world.outbox.table


def test_a_loss_without_a_name_is_looked_for_everywhere(scratch: Path) -> None:
    for cause in ("recursion", "probe_missed", "lost_map_full"):
        world = World(scratch)
        world.sensor.lost = {cause: 1}
        world.intake.check_losses()
        assert world.surveys == 1
        world.intake.check_losses()
        assert world.surveys == 1


def read(world: World, id: FileId, at: int) -> Flush:
    """Have everything read that is owed; `id` must be among it."""
    flushes = {flush.owed.id: flush for flush in world.outbox.reads.begin(at, 100)}
    attributes = Attributes(0o644, 0, 0, 0, 0)
    for flush in flushes.values():
        kind = Kind.FILE if flush.owed.id == FILE else Kind.DIRECTORY
        world.outbox.reads.done(
            Part(flush, InodeFact(flush.owed.id, kind, attributes, 0, check=flush.owed.check), []), at
        )
    while world.outbox.epochs.compose() is not None:
        pass
    return flushes[id]


def lose(world: World) -> None:
    world.sensor.lost = {"recursion": world.sensor.lost.get("recursion", 0) + 1}
    world.intake.check_losses()


def owed(world: World, id: FileId = FILE) -> Owed:
    found = world.outbox.table.get(id)
    assert found is not None
    return found


def test_what_is_owed_besides_a_loss_is_compared_block_by_block(scratch: Path) -> None:
    """To compare its times would be too late: with the bytes that are known they arrive."""
    world = World(scratch)
    world.outbox.table.mark(FILE, 1).ranges.add(5, 10)
    lose(world)
    assert read(world, FILE, time.monotonic_ns()).owed.deep


def test_what_was_read_since_the_last_sound_moment_is_compared_block_by_block(scratch: Path) -> None:
    """The loss may be older than the read, which then carried the times of what was lost."""
    world = World(scratch)
    world.outbox.table.mark(FILE, 1).ranges.add(5, 10)
    assert not read(world, FILE, time.monotonic_ns()).owed.deep
    lose(world)
    assert owed(world).deep
    assert SUB not in world.outbox.table


def test_what_is_being_read_when_a_loss_is_found_is_compared_block_by_block_afterwards(scratch: Path) -> None:
    world = World(scratch)
    world.outbox.table.mark(FILE, 1).ranges.add(5, 10)
    assert [flush.owed.id for flush in world.outbox.reads.begin(1, 100)] == [FILE]
    lose(world)
    assert owed(world).deep


@pytest.mark.parametrize(("cause", "within"), [("recursion", SOON), ("lost_map_full", SOON), ("probe_missed", LATE)])
def test_what_was_read_long_before_a_loss_is_left_to_the_survey(scratch: Path, cause: str, within: int) -> None:
    for age, deep in ((within - SOON // 2, True), (within + SOON, False)):
        world = World(scratch)
        world.outbox.table.mark(FILE, 1).ranges.add(5, 10)
        read(world, FILE, time.monotonic_ns() - age)
        world.sensor.lost = {cause: 1}
        world.intake.check_losses()
        assert (FILE in world.outbox.table) is deep
        assert not deep or owed(world).deep
        assert world.surveys == 1


def test_what_is_compared_when_a_loss_is_found_is_compared_anew(scratch: Path) -> None:
    """Its blocks may have been read before what was lost, and the last word carries its times."""
    world = World(scratch)
    world.outbox.suspicion.doubt(FILE, 1)
    read(world, FILE, time.monotonic_ns() - LATE - SOON)
    world.outbox.applied(Answer(world.outbox.epochs.last, doubts=(FILE,)), 0)
    (compared,) = world.outbox.doubts.begin(1)
    world.sensor.lost = {"recursion": 1}
    world.intake.check_losses()
    world.outbox.verdicts.compared(compared, RangeSet(), 0)
    assert owed(world).deep


def test_reads_are_remembered_no_longer_than_a_loss_may_be_late(scratch: Path) -> None:
    world = World(scratch)
    world.outbox.table.mark(FILE, 1)
    read(world, FILE, time.monotonic_ns() - LATE - 1_000_000_000)
    world.outbox.table.mark(SUB, 1)
    read(world, SUB, time.monotonic_ns())
    world.intake.check_losses()
    assert list(world.outbox.reads.since(0)) == [SUB]


def test_a_directory_that_is_being_asked_about_is_so_again_by_a_successor(scratch: Path) -> None:
    outbox = World(scratch).outbox
    outbox.unlisted.add(SUB, 1)
    outbox.debts.unshipped.pop(SUB, None)
    taken = outbox.unlisted.take(10, 2)
    assert list(taken) == [SUB]
    assert ListLook(SUB) in list(snapshot.marks(outbox))
    outbox.unlisted.answered(taken)
    assert ListLook(SUB) not in list(snapshot.marks(outbox))


def test_of_a_directory_that_the_replica_lacked_the_names_are_compared_too(scratch: Path) -> None:
    """The predecessor may have told the directory and died before it told the names in it."""
    world = World(scratch)
    snapshot.restore(world.outbox, Whole(SUB), 5)
    assert list(world.outbox.unlisted) == [SUB]
    snapshot.restore(world.outbox, Whole(FILE), 5)
    assert list(world.outbox.unlisted) == [SUB]

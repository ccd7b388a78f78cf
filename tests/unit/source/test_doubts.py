"""Files in doubt: asked about, compared, and what differs is owed; nothing is lost on the way, and `wait` waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.dirty.generations import Generations
from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import DirtyTable, Owed
from replicator.errors import RemoteError
from replicator.model import END_OF_FILE, Answer, Attributes, FileId, InodeFact, Kind, Slot
from replicator.source.flight import Flush, Part
from replicator.source.outbox import Outbox
from replicator.tree.exclude import Exclude
from replicator.tree.resolver import Changes, Due

ROOT, FILE = FileId(0, 0, 2, 0), FileId(0, 0, 12, 1)
MIB = 1 << 20


def told(flush: Flush) -> Part:
    """What the reader makes of a flush, of a file of 1 MiB."""
    owed = flush.owed
    kind = Kind.DIRECTORY if owed.id == ROOT else Kind.FILE
    fact = InodeFact(
        owed.id,
        kind,
        Attributes(0o644, 0, 0, 1, 1),
        MIB if kind is Kind.FILE else 0,
        whole=owed.whole or kind is Kind.DIRECTORY,
        check=owed.check,
        deep=owed.deep and kind is Kind.FILE,
    )
    return Part(flush, fact, [])


class World:
    """An outbox with one file, of which the replica knows."""

    def __init__(self) -> None:
        self.outbox = Outbox(ROOT, Exclude(()))
        self.outbox.index.bind(Slot(ROOT, b"file"), FILE, Kind.FILE)

    def epoch(self) -> list[InodeFact]:
        """Read and tell what may be."""
        for flush in self.outbox.reads.begin(0, 10):
            self.outbox.reads.done(told(flush), 0)
        composed = self.outbox.epochs.compose()
        return list(composed[0].inodes) if composed else []

    def answer(self, *, doubts: tuple[FileId, ...] = (), needs: tuple[FileId, ...] = ()) -> None:
        number = self.outbox.epochs.last
        self.outbox.applied(Answer(number, doubts=doubts, needs=needs), 0)
        self.outbox.durable(number, 0)

    @property
    def owes(self) -> int:
        return self.outbox.generations.owed


def compared(world: World) -> Owed:
    """The file, told to be in doubt, while it is compared."""
    world.outbox.suspicion.doubt(FILE, 1)
    (fact,) = world.epoch()
    assert (fact.check, fact.deep, fact.data) == (True, True, ())
    world.answer(doubts=(FILE,))
    (owed,) = world.outbox.doubts.begin(5)
    return owed


def test_what_differs_is_owed_and_nothing_else() -> None:
    world = World()
    owed = compared(world)
    waiting = world.outbox.generations.close()
    assert world.owes == 1
    world.outbox.verdicts.compared(owed, RangeSet([(8192, 16384)]), MIB)
    assert not world.outbox.generations.settled(waiting)
    (flush,) = world.outbox.reads.begin(0, 10)
    assert (list(flush.owed.ranges), flush.owed.whole, flush.owed.deep) == ([(8192, 16384)], False, False)
    assert flush.known_size == MIB
    world.outbox.reads.done(told(flush), 0)
    world.outbox.epochs.compose()
    world.answer()
    assert world.outbox.generations.settled(waiting)
    assert world.owes == 0


def test_a_file_without_differences_is_told_to_be_right() -> None:
    """The replica does not believe its content before."""
    world = World()
    world.outbox.verdicts.compared(compared(world), RangeSet(), MIB)
    (fact,) = world.epoch()
    assert (fact.check, fact.whole) == (False, False)


def test_no_bytes_are_sent_while_a_file_is_in_doubt() -> None:
    world = World()
    world.outbox.table.mark(FILE, 1).ranges.add(0, 10)
    world.outbox.suspicion.doubt(FILE, 1)
    (fact,) = world.epoch()
    assert fact.deep
    assert world.epoch() == []  # asked
    world.answer(doubts=(FILE,))
    assert world.epoch() == []  # waits
    (owed,) = world.outbox.doubts.begin(1)
    world.outbox.table.mark(FILE, 2).ranges.add(100, 110)
    assert world.epoch() == []  # compared
    world.outbox.verdicts.compared(owed, RangeSet([(50, 60)]), MIB)
    (flush,) = world.outbox.reads.begin(0, 10)
    assert list(flush.owed.ranges) == [(0, 10), (50, 60), (100, 110)]
    assert flush.owed.since == 1


def test_a_lost_connection_begins_it_anew() -> None:
    for stage in range(4):
        world = World()
        world.outbox.suspicion.doubt(FILE, 1)
        if stage > 0:
            world.epoch()
        if stage > 1:
            world.answer(doubts=(FILE,))
        owed = world.outbox.doubts.begin(1) if stage > 2 else []
        world.outbox.disconnected()
        for each in owed:
            world.outbox.verdicts.compared(each, RangeSet([(0, 1)]), MIB)  # too late
        assert world.owes == 1
        (fact,) = world.epoch()
        assert fact.deep
        world.answer()
        assert world.owes == 0


def test_a_need_or_a_removal_ends_it() -> None:
    world = World()
    owed = compared(world)
    world.outbox.debts.whole(FILE, 5)
    world.outbox.verdicts.compared(owed, RangeSet([(0, 1)]), MIB)  # too late
    (flush,) = world.outbox.reads.begin(0, 10)
    assert flush.owed.whole
    world.outbox.disconnected()
    world.outbox.index.forget(FILE)
    world.outbox._forget(FILE)
    world = World()
    owed = compared(world)
    world.outbox.index.forget(FILE)
    world.outbox._forget(FILE)
    world.outbox.verdicts.gone(owed)
    assert world.owes == 0


def test_a_file_that_cannot_be_compared_is_sent_whole_after_a_pause() -> None:
    world = World()
    world.outbox.verdicts.failed(compared(world), 1000, whole=True)
    assert world.outbox.reads.begin(1000, 10) == []
    (flush,) = world.outbox.reads.begin(1000 + 10**9, 10)
    assert flush.owed.whole


def test_a_doubt_that_was_not_asked_for_is_a_lie() -> None:
    world = World()
    world.outbox.table.mark(FILE, 1).ranges.add(0, 10)
    world.epoch()
    with pytest.raises(RemoteError):
        world.outbox.applied(Answer(world.outbox.epochs.last, doubts=(FILE,)), 0)


def test_whatever_is_checked_and_was_not_doubted_may_be_sent() -> None:
    world = World()
    world.outbox.table.mark(FILE, 1).check = True
    (fact,) = world.epoch()
    assert (fact.check, fact.deep) == (True, False)
    world.outbox.table.mark(FILE, 2).ranges.add(0, 10)
    assert world.epoch() == []
    world.answer()
    (fact,) = world.epoch()
    assert not fact.check


ranges = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)).map(sorted).map(tuple), max_size=3)
marks = st.fixed_dictionaries(
    {
        "ranges": ranges,
        "folios": ranges,
        "lowest": st.none() | st.integers(0, 99),
        "whole": st.booleans(),
        "check": st.booleans(),
        "deep": st.booleans(),
        "mapped": st.booleans(),
    }
)


def mark(table: DirtyTable, what: dict[str, object]) -> None:
    owed = table.mark(FILE, 1)
    for name in ("ranges", "folios"):
        getattr(owed, name).update(RangeSet(what[name]))  # type: ignore[arg-type]
    if isinstance(what["lowest"], int):
        owed.lower(what["lowest"])
    if what["whole"]:
        owed.mark_whole()
    for name in ("check", "deep", "mapped"):
        setattr(owed, name, getattr(owed, name) or what[name])


@given(st.lists(marks, min_size=1, max_size=4), st.data())
def test_asking_first_loses_nothing(what: list[dict[str, object]], data: st.DataObject) -> None:
    """However marks are taken, asked about, and fold back: the bytes, or a doubt that covers them, stay owed."""
    generations = Generations()
    table = DirtyTable(generations)
    out: list[Owed] = []
    naive = RangeSet()
    doubted = mapped = False
    for each in what:
        mark(table, each)
        for name in ("ranges", "folios"):
            naive.update(RangeSet(each[name]))  # type: ignore[arg-type]
        if each["whole"]:
            naive.add(0, END_OF_FILE)
        doubted |= bool(each["deep"])
        mapped |= bool(each["mapped"])
        if FILE in table and not out and data.draw(st.booleans()):
            asked = table.ask_first(table.take(FILE))
            assert not asked.deep or (asked.check and not asked.touched and not asked.whole)
            assert not (asked.check and asked.touched)
            out.append(asked)
    for owed in out:
        table.fold(owed)
    entry = table.get(FILE)
    assert entry is not None
    covered = entry.ranges.copy()
    covered.update(entry.folios)
    assert all(covered.covers(*piece) for piece in naive)
    assert entry.deep or entry.whole or not doubted
    assert entry.mapped == mapped
    assert generations.owed == 1


def test_a_name_that_changes_touches_its_directory() -> None:
    world = World()
    watch = world.outbox.table.watch([ROOT, FILE])
    due = Due(world.outbox.generations.hold(), 1)
    world.outbox.changed(Changes(slots=[(Slot(ROOT, b"new"), due)]), 1)
    assert watch == {FILE}

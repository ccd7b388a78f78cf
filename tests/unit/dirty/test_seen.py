"""Changes that a read has seen already are not owed twice."""

from __future__ import annotations

import pytest

from replicator.dirty.generations import Generations
from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import DirtyTable, Owed
from replicator.model import FileId

FILE = FileId(0, 0, 12, 1)
WAITED, READ = 50, 60


@pytest.fixture
def flush_and_table() -> tuple[Owed, DirtyTable]:
    table = DirtyTable(Generations())
    table.mark(FILE, 10)
    return table.take(FILE), table


def test_what_was_changed_before_the_read_is_owed_by_the_flush(flush_and_table: tuple[Owed, DirtyTable]) -> None:
    flush, table = flush_and_table
    table.mark(FILE, 40).ranges.add(0, 100)
    table.seen(flush, WAITED, READ, [(0, 200)], 200, all_read=True)
    assert FILE not in table
    assert table.generations.owed == 1


def test_what_was_changed_after_the_read_stays_owed(flush_and_table: tuple[Owed, DirtyTable]) -> None:
    flush, table = flush_and_table
    table.mark(FILE, 40).ranges.add(0, 100)
    table.mark(FILE, WAITED + 1)
    table.seen(flush, WAITED, READ, [(0, 200)], 200, all_read=True)
    owed = table.get(FILE)
    assert owed is not None
    assert not owed.ranges, "its bytes were seen, its attributes perhaps not"


def test_bytes_that_were_on_their_way_stay_owed(flush_and_table: tuple[Owed, DirtyTable]) -> None:
    flush, table = flush_and_table
    owed = table.mark(FILE, 40)
    owed.ranges.add(0, 100)
    owed.begun = WAITED + 1
    table.seen(flush, WAITED, READ, [(0, 200)], 200, all_read=True)
    assert owed.ranges == RangeSet([(0, 100)])
    assert FILE in table


def test_only_what_was_sent_is_let_go(flush_and_table: tuple[Owed, DirtyTable]) -> None:
    flush, table = flush_and_table
    table.mark(FILE, 40).ranges.add(0, 100)
    table.seen(flush, WAITED, READ, [(0, 60)], 200, all_read=True)
    owed = table.get(FILE)
    assert owed is not None
    assert owed.ranges == RangeSet([(60, 100)])


def test_a_slice_leaves_the_attributes_owed(flush_and_table: tuple[Owed, DirtyTable]) -> None:
    flush, table = flush_and_table
    table.mark(FILE, 40).ranges.add(0, 100)
    table.seen(flush, WAITED, READ, [(0, 100)], 200, all_read=False)
    owed = table.get(FILE)
    assert owed is not None
    assert not owed.ranges


@pytest.mark.parametrize("why", ["mapped", "whole", "check", "deep", "folio"])
def test_what_the_read_cannot_vouch_for_stays_owed(flush_and_table: tuple[Owed, DirtyTable], why: str) -> None:
    flush, table = flush_and_table
    owed = table.mark(FILE, 40)
    owed.ranges.add(0, 100)
    match why:
        case "mapped":
            owed.mapped = True
        case "whole":
            owed.mark_whole()
        case "check":
            owed.check = True
        case "deep":
            owed.deep = True
        case "folio":
            owed.folios.add(0, 4096)
    table.seen(flush, WAITED, READ, [(0, 200)], 200, all_read=True)
    assert FILE in table


def test_bytes_that_were_there_when_they_were_reported_need_no_lock(flush_and_table: tuple[Owed, DirtyTable]) -> None:
    flush, table = flush_and_table
    owed = table.mark(FILE, 40)
    owed.ranges.add(0, 100)
    owed.written = READ
    table.seen(flush, WAITED, READ, [(0, 200)], 200, all_read=True)
    assert FILE not in table
    owed = table.mark(FILE, 40)
    owed.ranges.add(0, 100)
    owed.written = READ + 1
    table.seen(flush, WAITED, READ, [(0, 200)], 200, all_read=True)
    assert FILE in table


def test_a_truncation_that_the_flush_tells_of_is_forgotten_if_everything_behind_it_was_sent(
    flush_and_table: tuple[Owed, DirtyTable],
) -> None:
    flush, table = flush_and_table
    owed = table.mark(FILE, 40)
    owed.lower(10)
    table.seen(flush, WAITED, READ, [(0, 200)], 200, all_read=True)
    assert owed.lowest == 10, "the flush knew nothing of it"
    flush.lower(5)
    table.seen(flush, WAITED, READ, [(20, 200)], 200, all_read=True)
    assert owed.lowest == 10, "not all of what it uncovered was sent"
    table.seen(flush, WAITED, READ, [(0, 200)], 200, all_read=True)
    assert FILE not in table


def test_a_truncation_after_the_read_stays_owed(flush_and_table: tuple[Owed, DirtyTable]) -> None:
    flush, table = flush_and_table
    flush.lower(5)
    owed = table.mark(FILE, WAITED + 1)
    owed.lower(10)
    owed.sized = WAITED + 1
    table.seen(flush, WAITED, READ, [(0, 200)], 200, all_read=True)
    assert owed.lowest == 10


@pytest.mark.parametrize(("epoch", "owed_still"), [(0, False), (6, False), (7, True), (8, True)])
def test_a_record_that_stands_for_later_writes_stays_owed_if_they_may_have_come_after_the_read(
    flush_and_table: tuple[Owed, DirtyTable], epoch: int, owed_still: bool
) -> None:
    flush, table = flush_and_table
    owed = table.mark(FILE, 40, complete=True)
    owed.ranges.add(0, 100)
    owed.epoch = epoch
    table.seen(flush, WAITED, READ, [(0, 200)], 200, all_read=True, fence=7)
    assert (FILE in table) is owed_still
    assert owed.ranges == RangeSet([(0, 100)] if owed_still else [])


def test_the_newest_epoch_of_an_inode_counts_for_all_that_it_owes(flush_and_table: tuple[Owed, DirtyTable]) -> None:
    flush, table = flush_and_table
    lost = Owed(FILE, table.generations.hold(), 30, epoch=9)
    owed = table.mark(FILE, 40, complete=True)
    owed.ranges.add(0, 100)
    owed.epoch = 3
    table.fold(lost)
    table.seen(flush, WAITED, READ, [(0, 200)], 200, all_read=True, fence=7)
    assert owed.ranges == RangeSet([(0, 100)])

"""The dirty table: marking, taking, folding back."""

from __future__ import annotations

from replicator.dirty.generations import Generations
from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import DirtyTable
from replicator.model import END_OF_FILE, FileId

FILE = FileId(0, 0, 12, 1)


def table() -> DirtyTable:
    return DirtyTable(Generations())


def test_a_flush_takes_all_and_later_changes_start_anew() -> None:
    dirty = table()
    dirty.mark(FILE, 5).ranges.add(0, 10)
    owed = dirty.take(FILE)
    assert FILE not in dirty
    dirty.mark(FILE, 9).ranges.add(20, 30)
    again = dirty.get(FILE)
    assert again is not None
    assert (owed.since, again.since) == (5, 9)
    assert again.ranges == RangeSet([(20, 30)])


def test_a_lost_flush_is_united_with_what_came_since() -> None:
    dirty = table()
    first = dirty.mark(FILE, 5)
    first.ranges.add(0, 10)
    first.lower(100)
    owed = dirty.take(FILE)
    dirty.generations.close()
    second = dirty.mark(FILE, 9)
    second.ranges.add(5, 30)
    second.lower(200)
    second.holes = True
    dirty.fold(owed)
    merged = dirty.get(FILE)
    assert merged is not None
    assert merged.ranges == RangeSet([(0, 30)])
    assert (merged.lowest, merged.since, merged.generation, merged.holes) == (100, 5, 1, True)
    assert dirty.generations.owed == 1


def test_whole_is_everything_from_size_zero() -> None:
    dirty = table()
    owed = dirty.mark(FILE, 1)
    owed.folios.add(0, 4096)
    owed.mark_whole()
    assert (owed.lowest, owed.whole, owed.ranges) == (0, True, RangeSet([(0, END_OF_FILE)]))
    assert not owed.folios


def test_attributes_alone_touch_no_bytes() -> None:
    dirty = table()
    assert not dirty.mark(FILE, 1).touched
    dirty.mark(FILE, 1).lower(0)
    assert dirty.mark(FILE, 1).touched


def test_dropping_gives_the_token_back() -> None:
    dirty = table()
    dirty.mark(FILE, 1)
    dirty.drop(FILE)
    dirty.drop(FILE)
    assert dirty.generations.owed == 0


def test_watched_ids_vanish_when_they_change() -> None:
    dirty = table()
    other = FileId(0, 0, 13, 1)
    one, two = dirty.watch([FILE, other]), dirty.watch([FILE])
    dirty.mark(FILE, 1)
    assert (one, two) == ({other}, set())
    dirty.unwatch(one)
    dirty.mark(other, 2)
    assert one == {other}


def test_an_older_generation_wins() -> None:
    dirty = table()
    old = dirty.generations.close()
    dirty.mark(FILE, 5)
    owed = dirty.mark(FILE, 7, old)
    assert owed.generation == old
    assert dirty.generations.owed == 1

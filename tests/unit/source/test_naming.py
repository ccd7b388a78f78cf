"""Which names and deaths may be told when."""

from __future__ import annotations

from replicator.dirty.generations import Generations
from replicator.model import FileId, Slot
from replicator.source.naming import Naming
from replicator.tree.resolver import Due

DIRECTORY, NEW, OLD = FileId(0, 0, 2, 1), FileId(0, 0, 12, 1), FileId(0, 0, 13, 1)
SLOT = Slot(DIRECTORY, b"name")
OTHER = Slot(DIRECTORY, b"other")


def naming() -> tuple[Naming, Generations]:
    generations = Generations()
    return Naming(generations), generations


def due(generations: Generations, before: FileId | None = None) -> Due:
    return Due(generations.hold(), since=1, before=before)


def test_a_name_waits_for_its_content_and_then_comes() -> None:
    names, generations = naming()
    names.queue(SLOT, due(generations))
    assert names.take(lambda slot, due: NEW, 10) == {}
    assert names.take(lambda slot, due: None, 10) == {}, "nobody said that it may be asked about again"
    names.release(NEW)
    assert list(names.take(lambda slot, due: None, 10)) == [SLOT]


def test_a_death_comes_after_the_name_that_fills_its_place() -> None:
    names, generations = naming()
    names.queue(SLOT, due(generations, before=OLD))
    names.queue_dead(OLD, due(generations))
    assert names.take(lambda slot, due: NEW, 10) == {}
    assert names.take_dead(10, ()) == {}
    names.release(NEW)
    assert list(names.take(lambda slot, due: None, 10)) == [SLOT]
    assert list(names.take_dead(10, ())) == [OLD]


def test_a_death_does_not_wait_for_strangers() -> None:
    names, generations = naming()
    names.queue(SLOT, due(generations, before=NEW))
    names.queue_dead(OLD, due(generations))
    assert names.take(lambda slot, due: NEW, 10) == {}
    assert list(names.take_dead(10, ())) == [OLD], (
        "a file that cannot be written must not keep removals from making room"
    )


def test_a_name_queued_twice_is_told_once_and_remembers_what_it_was_first() -> None:
    names, generations = naming()
    names.queue(SLOT, due(generations, before=OLD))
    names.queue(SLOT, due(generations, before=NEW))
    assert generations.owed == 1
    names.queue_dead(OLD, due(generations))
    assert names.take_dead(10, ()) == {}
    assert list(names.take(lambda slot, due: None, 10)) == [SLOT]
    assert list(names.take_dead(10, ())) == [OLD]


def test_what_is_queued_again_after_a_lost_epoch_keeps_its_order() -> None:
    names, generations = naming()
    names.queue(SLOT, due(generations, before=OLD))
    names.queue_dead(OLD, due(generations))
    lost = names.take(lambda slot, due: None, 10)
    dead = names.take_dead(10, ())
    for slot, token in lost.items():
        names.queue(slot, token)
    for id, token in dead.items():
        names.queue_dead(id, token)
    assert names.take(lambda slot, due: NEW, 10) == {}
    assert names.take_dead(10, ()) == {}


def test_no_more_than_asked_for() -> None:
    names, generations = naming()
    for slot in (SLOT, OTHER):
        names.queue(slot, due(generations))
    assert list(names.take(lambda slot, due: None, 1)) == [SLOT]
    assert list(names.take(lambda slot, due: None, 1)) == [OTHER]


def test_a_death_that_is_deferred_waits_and_is_not_forgotten() -> None:
    names, generations = naming()
    names.queue_dead(OLD, due(generations))
    names.queue_dead(NEW, due(generations))
    names.defer(OLD)
    assert list(names.take_dead(10, ())) == [NEW]
    assert names.is_dying(OLD)
    assert len(list(names.dues())) == 1
    names.resume(OLD)
    assert list(names.take_dead(10, ())) == [OLD]

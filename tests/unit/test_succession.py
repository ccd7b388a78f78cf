"""What a journal's snapshot must say of what the replica durably has and the index has not heard of yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from replicator.capture.names import ListLook, Overflow, SlotLook
from replicator.journal.marks import Mark
from replicator.model import FileId, Slot
from replicator.source.outbox import Outbox
from replicator.succession import Succession
from replicator.tree.exclude import Exclude
from replicator.tree.store import Told

ROOT, DIRECTORY = FileId(0, 0, 2, 1), FileId(0, 0, 3, 1)
SLOT = Slot(ROOT, b"gone")
TOLD = Told(slots={SLOT: None}, dead=[DIRECTORY])


def owed(unwritten: list[Told], waiting: list[Told], *, busy: bool = False) -> list[Mark]:
    """All marks of a snapshot taken now, of an outbox that owes nothing itself."""
    outbox = Outbox(ROOT, Exclude([]))
    outbox.news.waiting = waiting
    given: list[Callable[[], Iterator[Mark]]] = []
    ledger: Any = SimpleNamespace(unwritten=unwritten, journal=lambda _outbox, marks, _forsaken: given.append(marks))
    catchup: Any = SimpleNamespace(busy=busy)
    Succession(ledger, outbox, catchup, lambda: None)
    return list(given[0]())


@pytest.mark.parametrize("where", ["unwritten", "waiting"])
def test_names_and_deaths_that_the_index_has_not_heard_of(where: str) -> None:
    said = owed([TOLD] if where == "unwritten" else [], [TOLD] if where == "waiting" else [])
    assert SlotLook(SLOT, None) in said
    assert ListLook(DIRECTORY) in said


def test_a_survey_that_is_under_way() -> None:
    assert Overflow() in owed([], [], busy=True)
    assert owed([], []) == []

"""What surveys find while there is no room for it: each inode is said once, with all that any of them found."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from replicator import catchup
from replicator.catchup import BACKLOG, Catchup, Findings
from replicator.dirty.generations import Generations
from replicator.model import FileId
from tests.support.deadline import eventually

FILES = [FileId(0, 0, number, 1) for number in range(100, 110)]


class Said:
    """Stands for what the outbox makes of suspicions."""

    def __init__(self) -> None:
        self.suspected: list[tuple[FileId, bool, bool]] = []
        self.gone: list[FileId] = []

    def suspect(self, id: FileId, now: int, generation: int | None, *, content: bool, numbers: bool) -> None:
        self.suspected.append((id, content, numbers))

    def missed(self, id: FileId, now: int, generation: int | None) -> None:
        self.gone.append(id)


class Surveyed:
    """A catchup whose surveys find what they are told to, with a table that is full until it is emptied."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found = Findings()
        self.said = Said()
        self.table: dict[int, None] = dict.fromkeys(range(BACKLOG))
        self.unsure: list[FileId] = []
        outbox: Any = SimpleNamespace(
            table=self.table,
            generations=Generations(),
            suspicion=self.said,
            news=SimpleNamespace(doubting=False),
            outsiders=SimpleNamespace(remember=lambda: None),
            index=SimpleNamespace(root=FILES[0], changed=lambda: iter(self.unsure)),
        )
        monkeypatch.setattr(catchup, "survey", lambda *_: self.found)
        anything: Any = None
        self.catchup = Catchup(anything, anything, outbox, "auto")

    def survey(self, found: Findings, *, content: bool = True) -> None:
        self.found = found
        self.catchup.survey(content=content)
        eventually(self._is_over)

    def _is_over(self) -> bool:
        self.catchup.turn(0)
        return not self.catchup._surveying


@pytest.fixture
def surveyed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Surveyed]:
    made = Surveyed(monkeypatch)
    yield made
    made.catchup.close()


def test_what_many_surveys_find_is_said_once(surveyed: Surveyed) -> None:
    for _ in range(5):
        surveyed.survey(Findings(changed=FILES[1:], complete=True))
    assert surveyed.said.suspected == []
    assert surveyed.catchup.busy
    surveyed.table.clear()
    surveyed.catchup.turn(0)
    assert surveyed.said.suspected == [(id, True, True) for id in FILES[1:]]
    assert not surveyed.catchup.busy


def test_all_that_any_of_them_found_is_said(surveyed: Surveyed) -> None:
    surveyed.unsure = [FILES[1]]
    surveyed.survey(Findings(), content=False)
    surveyed.unsure = []
    surveyed.survey(Findings(changed=[FILES[2]], missing=[FILES[3]], complete=True))
    surveyed.survey(Findings(changed=[FILES[1], FILES[3]], complete=True))
    surveyed.survey(Findings(changed=[FILES[2]]))
    surveyed.table.clear()
    surveyed.catchup.turn(0)
    assert surveyed.said.suspected == [(FILES[1], True, False), (FILES[2], True, False), (FILES[3], True, True)]
    assert surveyed.said.gone == [FILES[3]]


def test_what_is_found_later_is_said_again(surveyed: Surveyed) -> None:
    surveyed.table.clear()
    for _ in range(2):
        surveyed.survey(Findings(changed=[FILES[1]], complete=True))
    assert surveyed.said.suspected == [(FILES[1], True, True)] * 2

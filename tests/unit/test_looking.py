"""How many looks the loop makes in a turn, while they are quick and while they are slow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from replicator import looking
from replicator.tree.resolver import Changes


class Resolver:
    """One that always has more to do; each look takes `each` ns of a clock of its own."""

    pending = workable = complete = True

    def __init__(self) -> None:
        self.now = self.each = 0
        self.budgets: list[int] = []

    def resolve(self, _view: object, _now: int, budget: int) -> Changes:
        self.budgets.append(budget)
        self.now += budget * self.each
        return Changes()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> tuple[looking.Looking, Resolver]:
    resolver = Resolver()
    ignored: Any = SimpleNamespace(marks=lambda *_: None, take_records=lambda: None)
    outbox: Any = SimpleNamespace(resolver=resolver, table={}, changed=lambda *_: None)
    source: Any = None
    monkeypatch.setattr(looking, "SourceNamespace", lambda _: None)
    monkeypatch.setattr(looking, "time", SimpleNamespace(monotonic_ns=lambda: resolver.now))
    return looking.Looking(source, outbox, ignored, ignored, str), resolver


def test_slow_looks_do_not_hold_up_the_loop_and_quick_ones_are_many(made: tuple[looking.Looking, Resolver]) -> None:
    look, resolver = made
    for each, last in ((1_000, looking.LOOKS), (20_000_000, looking.FEWEST), (1_000, looking.LOOKS)):
        resolver.each = each
        for _ in range(8):
            look.turn(resolver.now)
        assert resolver.budgets[-1] == last

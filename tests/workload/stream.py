"""What a worker is to do, step by step: decided by the seed and the worker's number alone.

Gives names of actions and, for each step, a seed of its own, so that what came of one step does not change the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from tests.workload import attributes, contents, names  # noqa: F401  # they enter their rows
from tests.workload.action import actions

STORMS = {
    "renames": (
        "rename",
        "move_",
        "exchange",
        "there_and",
        "write_and_rename",
        "storm_of_renames",
        "storm_of_exchanges",
    ),
    "links": ("link", "unlink", "unnamed", "storm_of_links", "leave_and", "write_without"),
    "writes": ("random_", "small_writes", "write_anew", "pwrite", "store_"),
}
"""What a storm is made of, by how the actions' names begin."""
GUST = 25.0
"""How much likelier those are in one."""


@dataclass(frozen=True)
class Step:
    """One thing to do."""

    number: int
    action: str
    seed: int


def weights(storm: str | None) -> dict[str, float]:
    """Of each action, by name."""
    begins = STORMS[storm] if storm else ()
    return {name: row.weight * (GUST if name.startswith(begins) else 1.0) for name, row in actions.items()}


def stream(seed: int, worker: int, storm: str | None = None) -> Iterator[Step]:
    """Without end. Every action comes once, in some order, among the first of the first worker."""
    dice = Random(f"{seed} {worker} {storm}")
    odds = weights(storm)
    numbers = itertools.count()
    if worker == 0:
        first = sorted(odds)
        dice.shuffle(first)
        for name in first:
            yield Step(next(numbers), name, dice.getrandbits(64))
    while True:
        for name in dice.choices(list(odds), list(odds.values()), k=256):
            yield Step(next(numbers), name, dice.getrandbits(64))

"""`wait`: a barrier over everything that had happened to the tree when it was asked for.

A barrier first lets the ring be drained to where it stood and the names' queue be emptied of what was in it, then
closes the generation, then waits until nothing of that generation or an older one is owed. Pure: driven by the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from replicator.dirty.generations import Generations


@dataclass(slots=True)
class Barrier:
    """One waiter."""

    position: int
    """Ring position to be drained to."""
    turn: int
    """The loop's turn in which it was asked for: the names' queue is drained in each later one."""
    passed: Callable[[], None]
    early: bool = False
    generation: int | None = None


class Barriers:
    """All waiters of one sender."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations
        self._waiting: list[Barrier] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def closing(self) -> bool:
        """Whether some waiter only needs another turn of the loop."""
        return any(barrier.generation is None for barrier in self._waiting)

    def add(self, position: int, turn: int, passed: Callable[[], None], *, early: bool = False) -> None:
        """Call `passed` when everything before now is durable. `position`: the ring's, now; `turn`: the loop's.

        `early` ones may pass before the first sync is complete.
        """
        self._waiting.append(Barrier(position, turn, passed, early))

    def turn(self, consumed: int, turn: int, *, scanned: bool, in_sync: bool) -> None:
        """Look at every waiter, after the channels were drained in this turn up to ring position `consumed`.

        `scanned`: the tree was walked, so that what is owed is known; `in_sync`: the first sync is complete.
        """
        closed: int | None = None
        for barrier in self._waiting:
            if barrier.generation is None and consumed >= barrier.position and turn > barrier.turn:
                if closed is None:
                    closed = self._generations.close()
                barrier.generation = closed
        done = [
            barrier
            for barrier in self._waiting
            if barrier.generation is not None
            and (in_sync or (scanned and barrier.early))
            and self._generations.settled(barrier.generation)
        ]
        if done:
            self._waiting = [barrier for barrier in self._waiting if barrier not in done]
            for barrier in done:
                barrier.passed()

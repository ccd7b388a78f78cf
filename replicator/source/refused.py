"""What the replica refused of names and deaths, until it is told again.

Takes slots of epochs of which something was refused, and the dead whose deaths were; when their time has come (see
pace.py), has slots looked at or told again and lets deaths be told. Each slot holds a token, in its `Due`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from replicator.dirty.generations import Generations
from replicator.model import Slot
from replicator.source.naming import Naming
from replicator.source.pace import Pace
from replicator.tree.resolver import Due, Resolver


class Refused:
    """Of one outbox. Iterating gives the slots."""

    def __init__(self, resolver: Resolver, naming: Naming, pace: Pace, generations: Generations) -> None:
        self._resolver = resolver
        self._naming = naming
        self._pace = pace
        self._generations = generations
        self._slots: dict[Slot, tuple[int, Due]] = {}

    def __iter__(self) -> Iterator[Slot]:
        yield from self._slots

    def dues(self) -> Iterator[Due]:
        """Of the slots."""
        yield from (due for _, due in self._slots.values())

    def put(self, slot: Slot, told: Due | None, due: Due, when: int) -> None:
        """Deal with a slot once more, at `when`. `told`: what it went with, if the epoch carried it.

        What that epoch told of it is told again, and then not without what it waited for: an old name must not go
        before the new one is there. Otherwise it is looked at.
        """
        if told is None:
            due.force = True
        else:
            due.looked, due.before = told.looked, told.before
        if slot in self._slots:
            self._generations.release(self._slots.pop(slot)[1].generation)
        self._slots[slot] = (when, due)

    def retry(self, now: int) -> None:
        """Have told again whatever may be."""
        for id in [id for id in self._naming.deferred if self._pace.may_try(id, now)]:
            self._naming.resume(id)
        for slot in [slot for slot, (when, _) in self._slots.items() if when <= now]:
            _, due = self._slots.pop(slot)
            if due.force:
                self._resolver.look(slot, due.since, due.generation, force=True)
                self._generations.release(due.generation)
            else:
                self._naming.queue(slot, due)

    def retry_all(self) -> None:
        """It may go well now: another connection. The slots are dealt with at the next `retry`."""
        self._naming.deferred.clear()
        self._slots = {slot: (0, due) for slot, (_, due) in self._slots.items()}

    def next_due(self, after: int) -> int | None:
        """When, after `after`, the first slot is to be dealt with."""
        return min((when for when, _ in self._slots.values() if when > after), default=None)

"""The rules, each broken on purpose: an exploration that does not notice is worth nothing.

A mutant is a context in which one rule does not hold, by a patch where the rule lives. Together with the scope in which
its lack shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import Owed
from replicator.mirror.placement import Placement
from replicator.mirror.steps import Rename, Unlink
from replicator.model import Answer, FileId, Slot
from replicator.source.doubts import Doubts
from replicator.source.flight import Flush
from replicator.source.outbox import Outbox
from replicator.source.read import Outcome, Reader
from replicator.source.suspicion import Suspicion
from replicator.tree.resolver import Found, Hold, Resolver
from tests.model.explore import Scope
from tests.model.sender import Sender, SourceCalls
from tests.model.world import World


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken rule."""

    name: str
    broken: Callable[[], Any]
    scope: Scope = field(default_factory=Scope)


def _patch(owner: object, name: str, value: object) -> Any:
    return mock.patch.object(owner, name, value)


def no_generation() -> Any:
    """An inode is known by its number alone."""
    return _patch(World, "generation_step", 0)


@contextmanager
def replayed_names() -> Iterator[None]:
    """A name means what the last event said, not what a look finds."""
    told: dict[Slot, FileId | None] = {}
    look, begin, take = SourceCalls.lookup, Sender.__init__, Sender.take_looks

    def lookup(calls: SourceCalls, slot: Slot) -> Found | None:
        if slot not in told:
            return look(calls, slot)
        id = told[slot]
        node = calls.world.node(id) if id is not None else None
        return Found(node.id, node.kind) if node is not None else None

    def take_looks(sender: Sender, count: int) -> None:
        for event in sender.world.looks[:count]:
            if event.slot is not None:
                told[event.slot] = event.says
        take(sender, count)

    def start(sender: Sender, *args: Any, **kwargs: Any) -> None:
        told.clear()
        begin(sender, *args, **kwargs)

    with _patch(SourceCalls, "lookup", lookup), _patch(Sender, "take_looks", take_looks):
        with _patch(Sender, "__init__", start):
            yield


def forgotten_lowest_size() -> Any:
    """A truncation that was undone before the flush leaves no trace."""
    return _patch(Owed, "lower", lambda owed, size: None)


def unlink_first() -> Any:
    """What is to leave its name goes first, and is destroyed if it was the last."""
    run = Placement.run

    def first(placement: Placement, births: Sequence[Rename]) -> None:
        names, wishes = placement._names, placement._wishes
        for slot, id in list(wishes.want.items()):
            occupant = names.bound(slot)
            if occupant is not None and occupant != id and not names.is_directory(occupant):
                placement.emit(Unlink(occupant, slot, final=True))
        for slot, id in list(wishes.want.items()):
            if id is not None and names.record(id) is None:
                del wishes.want[slot]
                placement._plan.needs[id] = None
        run(placement, births)

    return _patch(Placement, "run", first)


def trusted_belief() -> Any:
    """The sender believes that all it sent is known; what the receiver misses is not heard."""
    applied = Outbox.applied

    def deaf(outbox: Outbox, answer: Answer, now: int) -> list[int]:
        return applied(outbox, replace(answer, needs=()), now)

    return _patch(Outbox, "applied", deaf)


def size_without_tail() -> Any:
    """A size that has grown travels without the bytes that it uncovers."""
    due = Reader._due

    def bare(reader: Reader, flush: Flush, size: int, outcome: Outcome) -> RangeSet:
        known, flush.known_size = flush.known_size, None
        try:
            return due(reader, flush, size, outcome)
        finally:
            flush.known_size = known

    return _patch(Reader, "_due", bare)


def no_fold_back() -> Any:
    """What was in flight when the connection was lost is forgotten."""
    disconnected = Outbox.disconnected

    def lossy(outbox: Outbox) -> None:
        for epoch in outbox.epochs.inflight:
            for generation in epoch.tokens():
                outbox.generations.release(generation)
        outbox.epochs.inflight.clear()
        disconnected(outbox)

    return _patch(Outbox, "disconnected", lossy)


def impatience() -> Any:
    """A live inode without a name is given up before the channels were drained once more."""

    def at_once(resolver: Resolver, hold: Hold | None, now: int) -> bool:
        return True

    return _patch(Resolver, "_expired", at_once)


def unflushed_mappings() -> Any:
    """A file is read while its folios can be stored to without a fault."""

    def nothing(reader: Reader, fd: int, flush: Flush, outcome: Outcome) -> None:
        return

    return _patch(Reader, "_write_out", nothing)


def unheld_bytes() -> Any:
    """Bytes of a file are sent while its content is compared."""
    return _patch(Doubts, "__contains__", lambda doubts, id: False)


def trusted_times() -> Any:
    """After a gap, size and times are believed."""

    def trusting(suspicion: Suspicion, ids: Sequence[FileId], now: int, *, content: bool) -> None:
        return

    return _patch(Suspicion, "distrust", trusting)


MUTANTS = [
    Mutant("the id has no generation", no_generation),
    Mutant("renames are replayed", replayed_names),
    Mutant("the lowest size is forgotten", forgotten_lowest_size),
    Mutant("unlinks come first", unlink_first),
    Mutant("needs are not heard", trusted_belief),
    Mutant("a size travels without its tail", size_without_tail),
    Mutant("nothing folds back", no_fold_back),
    Mutant("mappings are not flushed before the read", unflushed_mappings),
    Mutant("a live inode is given up at once", impatience),
    Mutant("bytes are sent while the content is compared", unheld_bytes, Scope(gaps=True)),
    Mutant("times are believed after a gap", trusted_times, Scope(gaps=True)),
]

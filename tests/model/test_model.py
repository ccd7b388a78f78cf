"""Source, sender, network and replica in memory: tens of thousands of interleavings end in equality, and must."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from replicator.model import Kind
from tests.model.explore import Run, Scope, explore, told
from tests.model.mutants import MUTANTS, Mutant
from tests.model.receiver import Crash, Fault
from tests.model.sender import Sender, small_scale

SCOPES = {
    "common": (Scope(), 8000),
    "one sender all the time": (Scope(restarts=False), 5000),
    "senders succeed each other": (Scope(heirs=True, restarts=False), 4000),
    "heirs of a replica that refuses": (Scope(heirs=True, refusals=True), 1500),
    "heirs, names excluded": (Scope(heirs=True, exclude=("c", "/a/b", "!c/b")), 1500),
    "heirs, things leave and return": (Scope(heirs=True, restarts=False, leaving=0.5), 1500),
    "restless": (Scope(actions=8, restless=0.12), 3000),
    "long": (Scope(actions=60), 600),
    "names excluded": (Scope(exclude=("c",)), 1500),
    "paths excluded": (Scope(exclude=("/a/b", "b/c", "!c/b/c")), 1500),
    "the replica refuses": (Scope(refusals=True), 2000),
    "looks are lost": (Scope(overflows=True), 2000),
    "bytes are lost": (Scope(gaps=True), 4000),
    "bytes are lost, restless": (Scope(actions=8, restless=0.12, gaps=True), 2000),
}


@pytest.fixture(autouse=True, scope="module")
def _small_scale() -> Iterator[None]:
    with small_scale():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", SCOPES)
def test_every_interleaving_ends_in_equality_and_destroys_nothing_live(name: str) -> None:
    scope, runs = SCOPES[name]
    failed = explore(range(runs), scope)
    if failed is not None:
        seed, error = failed
        pytest.fail(told(seed, scope, error), pytrace=False)


def test_the_runs_are_of_substance() -> None:
    """The exploration does meet what it is for: all kinds of steps, crashes, cuts, looks that merged."""
    seen: dict[str, int] = {}
    merged = crashes = 0
    for seed in range(300):
        trace: list[str] = []
        run = Run(seed, Scope(gaps=True), trace)
        run.go()
        merged += run.world.merged
        crashes += run.receiver.crashes
        for line in trace:
            word = line.split("(")[0].strip()
            seen[word] = seen.get(word, 0) + 1
    for step in ("Create", "Rename", "Link", "Exchange", "Unlink", "Rmdir", "Write", "Adorn", "Doubt", "Stamp"):
        assert seen.get(step, 0) > 10, f"{step} was taken {seen.get(step, 0)} times"
    assert merged > 10
    assert crashes > 10
    assert seen["link or sender: cut"] > 10
    assert seen["link or sender: restart"] > 10


def test_a_mapped_file_that_leaves_and_returns_is_flushed() -> None:
    """A store is known but not sent when the file leaves the tree; it comes back, still storable without a fault."""
    run = Run(0, Scope())
    world, sender = run.world, run.sender
    world.settle()
    run._quiesce()
    assert world.create(world.tree, b"mapped")
    node = world.tree.names[b"mapped"]
    assert world.write(node, 0, 6)
    run._quiesce()
    assert world.store(node, 0)
    sender.take_bytes(len(world.bytes))
    assert world.rename(world.tree, b"mapped", world.outside, b"mapped")
    for _ in range(4):
        sender.drain()
        sender.resolve()
    assert not sender.outbox.index.is_member(node.id)
    assert world.rename(world.outside, b"mapped", world.tree, b"mapped")
    sender.drain()
    sender.resolve()
    sender.start_reads(20)
    while sender.outcomes:
        sender.finish_read()
    world.clock += 10
    assert world.store(node, 1)
    run._quiesce()
    run._compare()


class Away:
    """A directory that its sender has seen leaving the tree, with files of several slices and another's second name."""

    def __init__(self) -> None:
        self.run = run = Run(0, Scope(heirs=True))
        world = self.world = run.world
        world.settle()
        run._quiesce()
        assert world.create(world.tree, b"d", Kind.DIRECTORY)
        directory = world.tree.names[b"d"]
        for parent, name in ((directory, b"f"), (directory, b"g"), (world.tree, b"h")):
            assert world.create(parent, name)
            assert world.write(parent.names[name], 0, 6)
        assert world.link(world.tree.names[b"h"], directory, b"l")
        run._quiesce()
        assert world.rename(world.tree, b"d", world.outside, b"d")
        self.look()

    def look(self) -> None:
        for _ in range(6):
            self.run.sender.drain()
            self.run.sender.resolve()
            self.world.clock += 20_000_000_000

    def back(self) -> None:
        assert self.world.rename(self.world.outside, b"d", self.world.tree, b"d")

    def compact(self) -> None:
        """The journal is replaced by a snapshot."""
        self.run.sender.journal.begin(self.run.sender.now, anew=True)

    def tell(self, crash_at: int, *, compacted: bool = False) -> None:
        """An epoch arrives, and the replica dies over it before that step, if not earlier."""
        self.run._compose()
        if compacted:
            self.compact()
        try:
            for message in self.run.up:
                if isinstance(message, tuple):
                    self.run.receiver.apply(*message, crash_at)
        except Crash:
            self.run._kill()
        self.run.up.clear()

    def inherit(self) -> None:
        """The sender dies too, and the next one brings all of it in step."""
        run = self.run
        run._cut()
        run.sender = Sender(run.world, run.calls, checking=False, memory=run.sender.memory)
        run._quiesce()
        run._compare()


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("seen", [False, True], ids=["the successor sees it return", "its sender saw it return"])
@pytest.mark.parametrize("compacted", ["never", "in flight", "afterwards"])
def test_a_directory_that_died_in_part_is_whole_again_when_it_returned(steps: int, seen: bool, compacted: str) -> None:
    """The successor of its sender hears no more than that a name may mean something else, which it does not."""
    away = Away()
    away.tell(crash_at=steps, compacted=compacted == "in flight")
    if compacted == "afterwards":
        away.compact()
    away.back()
    if seen:
        away.look()
    away.inherit()


@pytest.mark.parametrize("epochs", range(1, 4))
def test_a_file_that_returned_and_came_in_part_is_whole_with_the_next_sender(epochs: int) -> None:
    away = Away()
    away.back()
    away.look()
    sender = away.run.sender
    for _ in range(epochs):
        sender.start_reads(50)
        while sender.outcomes:
            sender.finish_read()
        away.tell(crash_at=100)
    away.inherit()


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_rule_is_found_out(mutant: Mutant) -> None:
    with mutant.broken():
        found = explore(range(6000), mutant.scope, Fault)
    assert found is not None, f"nothing in 6000 runs shows that {mutant.name}"
    seed, _ = found
    assert explore(range(seed, seed + 1), mutant.scope) is None, "the same run ends well when the rule holds"

"""One random run: a source that changes, a sender, a network that breaks, a receiver that dies; then the comparison."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from replicator.mirror.steps import LIMBO
from replicator.model import Answer, Facts, FileId, Kind
from replicator.source.epochs import Payload
from replicator.tree.exclude import Exclude
from tests.model.disk import Inode
from tests.model.filesystem import Node
from tests.model.receiver import Crash, Fault, Receiver
from tests.model.sender import Content, Nameless, Names, Question, Sender, SourceCalls, small_scale
from tests.model.world import World

QUIET_ROUNDS = 60
"""Rounds of everything in which a source that does not change must be equal on the replica."""


@dataclass(frozen=True, slots=True)
class Scope:
    """How big, and how rough, a run is."""

    actions: int = 14
    restless: float = 0.03
    restarts: bool = True
    heirs: bool = False
    """Senders succeed each other, with what the one before left."""
    overflows: bool = False
    """The queue of looks overflows now and then."""
    leaving: float = 0.0
    """See World: of the operations, after the beginning."""
    gaps: bool = False
    """The ring overflows now and then, and it is known, or not, of which inodes records were lost."""
    refusals: bool = False
    """Now and then the replica cannot take a step."""
    exclude: tuple[str, ...] = ()


class Run:
    """One interleaving, told by its seed alone."""

    def __init__(self, seed: int, scope: Scope, trace: list[str] | None = None) -> None:
        self.rng = random.Random(seed)
        self.scope = scope
        self._events, self._weights = _possible(scope)
        self.world = World(self.rng, Exclude(scope.exclude))
        self.world.trace = trace
        self.calls = SourceCalls(self.world, self.rng, 0.0)
        for _ in range(self.rng.randint(2, 6)):
            self.world.act()
        self._events_lost()
        self.world.sync()
        self.sender = Sender(self.world, self.calls, checking=False)
        self.receiver = Receiver(self.world.root, self.rng, self._precious, self.world.note)
        self.up: list[tuple[Facts, Payload] | Question] = []
        self.down: list[Answer | int | Question] = []
        self.judging: list[Content] = []
        """What the replica's thread reads while epochs are applied."""
        self.shipped: set[FileId] = set()
        self.filling: set[FileId] = set()
        """Inodes of which a whole content is on its way in parts."""
        self.wholes: dict[int, list[FileId]] = {}
        """By epoch, the inodes whose whole content it completes."""

    def go(self) -> None:
        """The run. Fault when the logic broke a promise."""
        try:
            self._go()
        finally:
            self.sender.memory.close()

    def _go(self) -> None:
        self.world.settle()
        if self.rng.random() < 0.7:
            self._quiesce()  # begin in step
        self.calls.restless, self.world.leaving = self.scope.restless, self.scope.leaving
        self.receiver.refusing = 0.1 if self.scope.refusals else 0.0
        for _ in range(self.scope.actions):
            for _ in range(self.rng.choice((1, 1, 2, 3))):
                self.world.act()
            for _ in range(self.rng.choice((0, 1, 2, 4))):
                self._something()
        self.calls.restless = self.world.leaving = self.receiver.refusing = 0.0
        self.world.settle()
        self._quiesce()
        self._compare()

    # ---- what may happen at any time

    def _something(self) -> None:
        rng, sender = self.rng, self.sender
        what = rng.choices(self._events, cum_weights=self._weights)[0]
        if self.world.trace is not None:
            self.world.note(f"link or sender: {what}")
        match what:
            case "bytes":
                sender.take_bytes(rng.randint(1, 4))
            case "looks":
                sender.take_looks(rng.randint(1, 4))
            case "resolve":
                sender.resolve()
            case "drain":
                sender.drain()
            case "read":
                sender.start_reads(rng.randint(1, 3))
            case "result":
                if sender.outcomes:
                    sender.finish_read()
            case "compose":
                self._compose()
            case "apply":
                self._apply(crash=rng.random() < 0.08)
            case "commit":
                self.down.append(self.receiver.commit())
            case "hear":
                self._hear()
            case "cut":
                self._cut()
            case "kill":
                self._kill()
            case "burst":
                self._round()
            case "compare":
                sender.compare_content()
            case "judge":
                self._judge()
            case "gap":
                if self.scope.gaps:
                    lost = [record.id for record in self.world.bytes]
                    lost += [node.id for node in rng.sample(self.world.files(), min(2, len(self.world.files())))]
                    self.world.bytes.clear()
                    if rng.random() < 0.7:
                        sender.inodes_lost(lost)
                    else:
                        sender.records_lost()
                    self.shipped.clear()
            case "overflow":
                if self.scope.overflows:
                    self.world.looks.clear()
                    sender.looks_lost()
                    self.shipped.clear()  # what is not settled may come again
            case "restart":
                if self.scope.restarts:
                    self._restart()
            case "heir":
                if self.scope.heirs:
                    self._succeed()
            case "survey":
                sender.go_on_with_survey()
            case "write":
                sender.write_index()
            case "written":
                sender.index_written()

    def _compose(self) -> None:
        self.sender.ask_names()
        self.up += self.sender.questions
        self.sender.questions.clear()
        composed = self.sender.compose()
        if composed is not None:
            self.up.append(composed)
            for fact in composed[0].inodes:
                if fact.whole and not fact.check:
                    self.filling.add(fact.id)
                if fact.id in self.filling and not fact.partial:
                    self.filling.remove(fact.id)
                    self.wholes.setdefault(composed[0].epoch, []).append(fact.id)
                if fact.kind is Kind.FILE and fact.whole and fact.id in self.shipped and self._precious(fact.id):
                    raise Fault(f"{fact.id} is sent a second time")

    def _apply(self, crash: bool = False) -> None:
        if not self.up:
            return
        message = self.up.pop(0)
        if isinstance(message, Content):
            self.judging.append(message)
            return
        if isinstance(message, Names | Nameless):
            self._reply(message)
            return
        facts, payload = message
        if self.world.trace is not None:
            self.world.note(f"replica: {facts}")
        try:
            answer = self.receiver.apply(facts, payload, self.rng.randint(0, 8) if crash else None)
        except Crash:
            self._kill()
            if self.scope.heirs and self.rng.random() < 0.5:  # both ends at once
                for _ in range(self.rng.choice((0, 1, 3))):
                    self.world.act()
                self._succeed()
        else:
            self.down.append(answer)
            self.shipped.difference_update(refusal.id for refusal in answer.refusals)

    def _reply(self, question: Names | Nameless) -> None:
        if isinstance(question, Names):
            for directory, wanted in question.directories.items():
                names = self.receiver.names(directory) or {}
                if names != wanted:
                    question.found[directory] = list(names)
        else:
            question.found = self.receiver.nameless()
        self.down.append(question)

    def _judge(self) -> None:
        if self.judging:
            question = self.judging.pop(self.rng.randrange(len(self.judging)))
            inode = self.receiver.inventory.inodes.get(question.owed.id)
            question.judge(None if inode is None else bytes(inode.data))
            self.down.append(question)

    def _hear(self) -> None:
        if not self.down:
            return
        heard = self.down.pop(0)
        sender = self.sender
        if isinstance(heard, Answer):
            sender.applied(heard)
            return
        if isinstance(heard, Names | Nameless | Content):
            sender.hear(heard)
            return
        sender.outbox.durable(heard, sender.now)
        for number in [number for number in self.wholes if number <= heard]:
            for id in self.wholes.pop(number):
                self._has_arrived(id)

    def _has_arrived(self, id: FileId) -> None:
        """Its bytes are durable on the replica: from here on they need not be sent again while it stays in the tree."""
        node = self.world.node(id)
        if node is None or not self.world.inside(node):
            return
        outbox = self.sender.outbox
        unheard = self.world.bytes or self.world.looks or self.sender.outcomes or outbox.resolver.pending
        if not unheard and id not in outbox.table and id not in outbox.reads:
            self.shipped.add(id)
            node.stayed = True

    def _cut(self) -> None:
        sender = self.sender
        asked = [each for each in (*self.up, *self.down, *sender.questions) if isinstance(each, Names | Nameless)]
        self.up.clear()
        self.down.clear()
        self.judging.clear()
        sender.questions.clear()
        self.wholes.clear()
        self.filling.clear()
        sender.disconnected(asked)

    def _kill(self) -> None:
        self.world.note("replica: killed")
        self.receiver.recover()
        self._cut()

    def _restart(self) -> None:
        """The sender's process ends and begins anew, with nothing but what it sees."""
        self._cut()
        self.world.sync()  # pages that are dirty when the hooks are attached would stay silent
        self._events_lost()
        self.shipped.clear()
        self.receiver.new_sender()
        self.sender.memory.close()
        self.sender = Sender(self.world, self.calls, checking=True)

    def _succeed(self) -> None:
        """The sender's process ends; the next one has its index and, unless that was lost, its journal.

        The hooks live on, or else there is a gap in which things happen that nobody tells.
        """
        memory = self.sender.memory
        if not memory.complete:
            return
        self._cut()
        gap = self.rng.random() < 0.5
        if gap:
            for _ in range(self.rng.choice((0, 1, 3))):
                self.world.act()
            self.world.sync()
            self._events_lost()
            if self.rng.random() < 0.3:
                shutil.rmtree(memory.path / "journal")
        self.world.note(f"sender: succeeded, {'after a gap' if gap else 'the hooks live on'}")
        self.shipped.clear()
        self.sender = Sender(self.world, self.calls, checking=False, memory=memory, gap=gap)

    def _events_lost(self) -> None:
        self.world.bytes.clear()
        self.world.looks.clear()

    # ---- the end

    def _round(self) -> None:
        """Everything once, in good order."""
        self.world.note("everything once")
        sender = self.sender
        while sender.survey:
            sender.go_on_with_survey()
        sender.resolve()
        sender.drain()
        sender.resolve()
        sender.outbox.settle(sender.now, after=0)
        sender.start_reads(50)
        while sender.outcomes:
            sender.finish_read()
        while self.sender.outbox.doubts.waiting:
            sender.compare_content()
        self._compose()
        while self.up:
            self._apply()
        while self.judging:
            self._judge()
        self.down.append(self.receiver.commit())
        while self.down:
            self._hear()
        sender.index_written()
        sender.write_index()
        sender.index_written()

    def _quiesce(self) -> None:
        for _ in range(QUIET_ROUNDS):
            self._round()
            if self.sender.idle():
                return
            self.world.clock += 20_000_000_000
        raise Fault(f"not in step after {QUIET_ROUNDS} quiet rounds")

    def _precious(self, id: FileId) -> bool:
        node = self.world.node(id)
        return node is not None and node.stayed

    def _compare(self) -> None:
        receiver = self.receiver
        if receiver.disk.limbo.names:
            raise Fault(f"left in limbo: {sorted(receiver.disk.limbo.names)}")
        pairs: dict[int, Inode] = {}
        self._same(b"", self.world.tree, receiver.disk.root, pairs)
        if any(place.parent == LIMBO for place in receiver.inventory.names):
            raise Fault("the inventory believes that something is in limbo")
        if len({id(inode) for inode in pairs.values()}) != len(pairs):
            raise Fault("two inodes of the source are one on the replica")

    def _same(self, path: bytes, node: Node, inode: Inode, pairs: dict[int, Inode]) -> None:
        where = path.decode() or "/"
        if pairs.setdefault(id(node), inode) is not inode:
            raise Fault(f"{where}: the names of one inode belong to two on the replica")
        here = (node.kind, bytes(node.data), node.mode, (0, 0), node.xattrs, node.target, node.mtime_ns)
        there = (inode.kind, bytes(inode.data), inode.mode, inode.owner, inode.xattrs, inode.target, inode.mtime_ns)
        if here != there:
            raise Fault(f"{where} differs: {here} here, {there} there")
        exclude = self.world.exclude
        names = {
            name: child
            for name, child in node.names.items()
            if not exclude.matches(path + name, child.kind is Kind.DIRECTORY)
        }
        if names.keys() != inode.names.keys():
            raise Fault(f"{where} holds {sorted(names)} here, {sorted(inode.names)} there")
        for name, child in names.items():
            below = path + name + (b"/" if child.kind is Kind.DIRECTORY else b"")
            self._same(below, child, inode.names[name], pairs)


_MIX = {
    "bytes": 10,
    "looks": 10,
    "resolve": 12,
    "drain": 3,
    "read": 12,
    "result": 14,
    "compose": 12,
    "apply": 14,
    "commit": 5,
    "hear": 12,
    "burst": 4,
    "cut": 2,
    "kill": 1,
    "restart": 1,
    "overflow": 1,
    "compare": 5,
    "judge": 8,
    "gap": 6,
    "heir": 3,
    "survey": 6,
    "write": 4,
    "written": 4,
}
PART = 50
"""Runs that a process makes at a time."""
_SURVEYS = ("survey", "write", "written")


def _possible(scope: Scope) -> tuple[list[str], list[int]]:
    """What may happen in such a run, and the sums of how often."""
    wanted = {"heir": scope.heirs, "overflow": scope.overflows, "gap": scope.gaps, "restart": scope.restarts}
    wanted.update(dict.fromkeys(_SURVEYS, scope.heirs or scope.overflows or scope.gaps))
    events = [event for event in _MIX if wanted.get(event, True)]
    return events, list(accumulate(_MIX[event] for event in events))


def explore(seeds: range, scope: Scope, wanted: type[Exception] = Exception) -> tuple[int, Exception] | None:
    """The first seed whose run fails with a `wanted` error, and that error; None if there is none.

    All processors take part, as copies of this process: what is patched here is so there.
    """
    parts = [seeds[at : at + PART] for at in range(0, len(seeds), PART)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
        for found in pool.map(partial(_failing, scope=scope, wanted=wanted), parts):
            if found is not None:
                pool.shutdown(cancel_futures=True)
                break
        else:
            return None
    try:
        Run(found, scope).go()
    except wanted as error:
        return found, error
    raise AssertionError(f"seed {found} fails in {scope} only the first time")


def _failing(seeds: range, scope: Scope, wanted: type[Exception]) -> int | None:
    for seed in seeds:
        try:
            Run(seed, scope).go()
        except wanted:
            return seed
        except Exception:  # the wrong way to fail, for who looks for a certain one
            continue
    return None


def told(seed: int, scope: Scope, error: BaseException) -> str:
    """A failed run, for a person: what happened, by all sides, and how it ended."""
    trace: list[str] = []
    try:
        Run(seed, scope, trace).go()
    except Exception as again:
        error = again
    shown = [line[:600] for line in trace[-120:]]
    return "\n".join([*shown, f"seed {seed}, {scope}: {type(error).__name__}: {error}"])


def main() -> None:
    """python -m tests.model.explore FIRST COUNT: explore further seeds, and tell of the first that fails."""
    first, count = int(sys.argv[1]), int(sys.argv[2])
    with small_scale():
        failed = explore(range(first, first + count), Scope())
        if failed is not None:
            sys.exit(told(failed[0], Scope(), failed[1]))
    print(f"{count} runs from seed {first} on: all end in equality")


if __name__ == "__main__":
    main()

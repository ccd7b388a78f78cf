"""What is left out (docs/suppression.md), as a machine small enough to try every interleaving of.

Takes writers on processors with store buffers, and rules that hold or not; gives the first history after which the
replica differs from a file that nobody changes any more. One file of two pages; a write fills one or both with a
number of its own. The reader turns as replicator/sender.py and replicator/reading.py do; a worker reads page by page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.model.memory import BOTH, WHOLE, Flush, Note, Record, State, Writer, filled, noted, owe, put, visible, wrote


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules; each may be broken by itself."""

    hook_after_data: bool = True
    writer_barrier: bool = True
    """The step that takes a note is a full barrier."""
    processors_barrier: bool = True
    """A fence is a full barrier on each processor."""
    guarded: bool = True
    """Who finds the processor's note taken does without."""
    note_after_submit: bool = True
    note_is_its_own_range: bool = True
    basis_carries_epoch: bool = True
    same_epoch: bool = True
    """Only what was told in the present epoch is left out."""
    fences: bool = True
    fence_after_drain: bool = True
    fence_for_strangers: bool = True
    """Records of inodes that are not members ask for a fence, too."""
    seen_by_epoch: bool = True
    """What stands for later writes than the read's is not let go as seen."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Who writes: for each writer its processor and the pages of each write; and what may happen besides, once."""

    writers: tuple[tuple[int, tuple[int, ...]], ...]
    stranger: bool = False
    """The file becomes a member of the tree at some time."""
    full: bool = False
    """A record does not fit into the ring."""
    cut: bool = False
    """The connection is lost."""


class Machine:
    """The steps that a state allows."""

    def __init__(self, rules: Rules, scope: Scope) -> None:
        self._rules = rules
        self._scope = scope
        told = ["take", "look", "load", "reserve", "submit", "epoch", "range"]
        if not rules.note_after_submit:
            told = ["take", "look", "load", "epoch", "range", "reserve", "submit"]
        self._order = ["store", *told] if rules.hook_after_data else [*told, "store"]
        self._told = self._order[self._order.index("load") + 1]
        """The first step of telling."""
        processors = [processor for processor, _ in scope.writers]
        self._local = [
            frozenset({"look", "epoch", "range"} if processors.count(processor) == 1 else ())
            for processor in processors
        ]
        """Steps that nobody can come before: they are taken together with the one before them."""

    def begin(self) -> State:
        """Nothing was written, all is in step."""
        processors = 1 + max(processor for processor, _ in self._scope.writers)
        return State(
            file=(0, 0),
            replica=(0, 0),
            buffers=((),) * processors,
            epoch=1,
            notes=(Note(BOTH),) * processors,
            writers=(Writer(at=self._order[0]),) * len(self._scope.writers),
            ring=(),
            lost=False,
            reader="turn",
            fence=1,
            repeats=False,
            member=not self._scope.stranger,
            owed=None,
            flush=None,
            full=self._scope.full,
            cut=self._scope.cut,
        )

    def over(self, state: State) -> bool:
        """Whether nothing will change any more."""
        written = all(writer.at == "over" for writer in state.writers)
        quiet = written and state.member and not any(state.buffers) and not state.ring and not state.lost
        return quiet and state.owed is None and state.flush is None

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Each step that somebody can take now: what it is called, and what comes of it."""
        for processor, stores in enumerate(state.buffers):
            if stores:
                yield f"processor {processor}: a store becomes visible", visible(state, processor, 1)
        for who, writer in enumerate(state.writers):
            if writer.at != "over":
                name = f"writer {who}: write {writer.write + 1}: {writer.at}"
                yield from ((name, after) for after in self._write(state, who))
        yield from ((f"reader: {state.reader}", after) for after in self._turn(state))
        if state.flush is not None and state.flush.at != "read":
            yield f"worker: {state.flush.at}", _work(state, state.flush)
        if not state.member:
            yield "the file becomes a member", owe(state._replace(member=True), WHOLE)
        if state.cut and state.flush is not None:
            yield "the connection is lost", owe(state._replace(cut=False, flush=None), state.flush.owed)

    # ------------------------------------------------------------------ writers

    def _write(self, state: State, who: int) -> Iterator[State]:
        for after in self._step(state, who):
            if after.writers[who].at in self._local[who]:
                yield from self._write(after, who)
            else:
                yield after

    def _step(self, state: State, who: int) -> Iterator[State]:
        rules, writer = self._rules, state.writers[who]
        processor, writes = self._scope.writers[who]
        pages, note = writes[writer.write], state.notes[processor]
        if writer.at == "store":
            number = 100 * who + writer.write + 1
            stores = (*state.buffers[processor], (pages, number))
            yield self._next(state._replace(buffers=put(state.buffers, processor, stores)), who)
        elif writer.at == "take":
            if rules.writer_barrier:
                state = visible(state, processor, len(state.buffers[processor]))
            yield self._next(noted(state, processor, note._replace(busy=note.busy + 1)), who)
        elif writer.at == "look":
            if rules.guarded and note.busy != 1:
                state = noted(state, processor, note._replace(busy=note.busy - 1))
                yield wrote(state, who, writer._replace(at="reserve", noting=False))
            else:
                covered = pages & note.pages == pages
                yield wrote(state, who, writer._replace(at="load" if covered else self._told))
        elif writer.at == "load":
            if note.epoch and (note.epoch == state.epoch or not rules.same_epoch):
                yield self._end(noted(state, processor, note._replace(busy=note.busy - 1)), who)
            else:
                yield self._next(wrote(state, who, writer._replace(epoch=state.epoch)), who)
        elif writer.at == "reserve":
            state = visible(state, processor, len(state.buffers[processor]))  # the ring has a lock
            epoch = writer.epoch if rules.basis_carries_epoch else 0
            record = Record(pages, epoch, late=True, writer=who)
            yield self._next(state._replace(ring=(*state.ring, record)), who)
            if state.full:
                after = state._replace(full=False, lost=True)
                yield self._next(wrote(after, who, writer._replace(submitted=False)), who)
        elif writer.at == "submit":
            ring = tuple(record._replace(writer=-1) if record.writer == who else record for record in state.ring)
            yield self._next(state._replace(ring=ring), who)
        elif writer.at == "epoch":
            epoch = writer.epoch if writer.submitted else 0
            yield self._next(noted(state, processor, note._replace(epoch=epoch)), who)
        elif writer.at == "range":
            keep = writer.epoch and not rules.note_is_its_own_range
            note = Note(note.pages if keep else pages, note.epoch, note.busy - 1)
            yield self._next(noted(state, processor, note), who)

    def _after(self, step: str) -> str | None:
        place = self._order.index(step) + 1
        return self._order[place] if place < len(self._order) else None

    def _next(self, state: State, who: int) -> State:
        """What follows the present step."""
        writer = state.writers[who]
        following = self._after(writer.at)
        while following in ("epoch", "range") and not writer.noting:
            following = self._after(following)
        if following is None:
            return self._end(state, who)
        return wrote(state, who, writer._replace(at=following))

    def _end(self, state: State, who: int) -> State:
        """The write is told, or is not to be."""
        writer = state.writers[who]
        if not self._rules.hook_after_data and writer.at != "store":
            return wrote(state, who, writer._replace(at="store"))
        if writer.write + 1 == len(self._scope.writers[who][1]):
            return wrote(state, who, Writer(at="over"))
        return wrote(state, who, Writer(writer.write + 1, self._order[0]))

    # ------------------------------------------------------------------ the reader

    def _turn(self, state: State) -> Iterator[State]:
        rules = self._rules
        at = state.reader
        if at == "turn":
            if state.lost:
                yield owe(state._replace(lost=False), WHOLE)
            ask = rules.fences and state.repeats and not rules.fence_after_drain
            yield self._fence(state, "drain") if ask else self._drain(state, "hear")
        elif at == "drain":
            yield self._drain(self._everywhere(state), "hear")
        elif at == "hear":
            read = state.flush is not None and state.flush.at == "read"
            yield self._drain(state, "see") if read else state._replace(reader="start")
        elif at == "see":
            yield self._seen(state)
        elif at == "start":
            ask = rules.fences and state.repeats and rules.fence_after_drain
            yield self._fence(state, "take") if ask else _take(state)
        elif at == "take":
            yield _take(self._everywhere(state))

    def _drain(self, state: State, then: str) -> State:
        """What is in the ring, up to a record that is being filled."""
        ring = state.ring
        while ring and ring[0].writer < 0:
            record, ring = ring[0], ring[1:]
            told = record.epoch != 0 and (state.member or self._rules.fence_for_strangers)
            state = state._replace(ring=ring, repeats=state.repeats or told)
            state = owe(state, record) if state.member else state
        return state._replace(reader=then)

    def _fence(self, state: State, then: str) -> State:
        """The new number is written; it is the present one when all processors know."""
        return state._replace(epoch=state.epoch + 1, reader=then)

    def _everywhere(self, state: State) -> State:
        if self._rules.processors_barrier:
            for processor, stores in enumerate(state.buffers):
                state = visible(state, processor, len(stores))
        return state._replace(fence=state.epoch, repeats=False)

    def _seen(self, state: State) -> State:
        """What the read of one page saw is owed no more; then the next page, or the flush is over."""
        flush, owed = state.flush, state.owed
        if flush is None:  # lost meanwhile
            return state._replace(reader="start")
        page = flush.left & -flush.left
        later = owed is not None and self._rules.seen_by_epoch and owed.epoch >= flush.fence
        if owed is not None and not (owed.late or owed.whole or later):
            owed = owed._replace(pages=owed.pages & ~page) if owed.pages & ~page else None
        left = flush.left & ~page
        return state._replace(
            replica=filled(state.replica, page, flush.got),
            owed=owed,
            flush=flush._replace(left=left, at="waiting", got=0) if left else None,
            reader="start",
        )


def _take(state: State) -> State:
    if state.owed is None or state.flush is not None:
        return state._replace(reader="turn")
    flush = Flush(state.owed, state.owed.pages, state.fence)
    return state._replace(owed=None, flush=flush, reader="turn")


def _work(state: State, flush: Flush) -> State:
    """The worker looks at the clock, then at the first page that is left."""
    if flush.at == "waiting":
        return state._replace(
            ring=tuple(record._replace(late=False) if record.late else record for record in state.ring),
            owed=state.owed._replace(late=False) if state.owed else None,
            flush=flush._replace(at="reading"),
        )
    page = flush.left & -flush.left
    return state._replace(flush=flush._replace(at="read", got=state.file[page - 1]))


def explore(rules: Rules, scope: Scope) -> tuple[int, list[str]]:
    """How many states there are, and a history that ends in a difference; an empty one if none does."""
    machine = Machine(rules, scope)
    start = machine.begin()
    came: dict[State, tuple[State, str] | None] = {start: None}
    todo = [start]
    while todo:
        state = todo.pop()
        if machine.over(state) and state.file != state.replica:
            return len(came), _history(came, state)
        for name, after in machine.steps(state):
            if after not in came:
                came[after] = state, name
                todo.append(after)
    return len(came), []


def _history(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    history = [f"the file is {state.file}, the replica {state.replica}"]
    while (before := came[state]) is not None:
        state = before[0]
        history.append(before[1])
    return history[::-1]

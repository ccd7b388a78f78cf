"""A sweep: some inodes, or all, compared on both sides while both are in use.

Some batches are under way at once, each of which is judged like this: a barrier; then its inodes are watched for
changes and read in a thread; then a barrier again, after which the question travels in the stream behind everything
that made the replica so. A finding counts if its inode was not touched from the reading until the answer came, and if
it is found once more. What was touched is tried again, and is unsettled after some tries. A large file is judged in
parts, so that a write in one place does not unsettle the others.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from replicator import blocks
from replicator.link import inquiry
from replicator.model import FileId, Kind
from replicator.tree.handles import Stale
from replicator.verify import item as items
from replicator.verify.found import UNREADABLE, Found, found_of

if TYPE_CHECKING:
    from replicator.sender import Sender

BATCHES = 4
"""Batches that are under way at once."""
FILES = 256
"""Inodes of a batch."""
BYTES = 64 << 20
"""Bytes of content of a batch; the last span may go beyond."""
TRIES = 5
RETRY = 5.0
"""Seconds after which a sweep in the background goes on that had no answer."""
QUESTION = 1 << 20
"""Bytes of one question, about."""


@dataclass(slots=True)
class _Task:
    """An inode, or (from `at` on) a part of its content."""

    id: FileId
    at: int = 0
    tries: int = 0
    again: bool = False
    """It was found to differ, and is looked at once more and closely."""
    excluded: items.Excluded | None = None


@dataclass(slots=True)
class _Reading:
    """What the source has of a task."""

    task: _Task
    items: list[items.Item] = field(default_factory=list)
    spans: list[blocks.Span | None] = field(default_factory=list)
    """Of each item, its content."""
    length: int = 0
    """Bytes of content that were read."""
    rest: int | None = None
    """Where the content goes on that was not read."""
    error: str = ""
    asked: int = 0
    """Items that were asked about."""
    found: dict[tuple[str, tuple[bytes, ...]], Found] = field(default_factory=dict)
    """By kind and name, the first."""


class Sweep:
    """One run over inodes. `found` is called for each difference, `over` once, with why it stopped if it did."""

    def __init__(
        self,
        sender: Sender,
        ids: Iterable[FileId],
        found: Callable[[Found], None],
        over: Callable[[str | None], None],
        rate: int | None = None,
    ) -> None:
        """`rate`: bytes of content that are read each second, at most; such a sweep outlives its connection."""
        self._sender = sender
        self._ids = iter(ids)
        self._todo: deque[_Task] = deque()
        self._found = found
        self._over = over
        self._rate = rate
        self._next = 0.0
        self._busy = 0
        self._ended = False
        self._unsettled: set[FileId] = set()
        self.files = 0
        """Inodes that were compared."""
        self.bytes = 0
        """Bytes of content that were."""

    @property
    def unsettled(self) -> int:
        """Inodes that were written whenever they were looked at."""
        return len(self._unsettled)

    def turn(self) -> None:
        """Begin what may be begun; to be called now and then. Calls `over` when nothing is left."""
        batches = BATCHES if self._rate is None else 1
        while self._busy < batches and not self._ended and time.monotonic() >= self._next and self._more():
            self._busy += 1
            self._barrier(self._read)
        if not self._busy and not self._ended and not self._more():
            self._end(None)

    def _more(self) -> bool:
        """Whether something is left to begin; has some at hand then."""
        if not self._todo:
            self._todo.extend(_Task(id) for id in islice(self._ids, FILES))
        return bool(self._todo)

    def stop(self) -> None:
        """Begin nothing any more, and call nobody."""
        self._ended = True

    def _end(self, error: str | None) -> None:
        if not self._ended:
            self._ended = True
            self._over(error)

    def _barrier(self, passed: Callable[[], None]) -> None:
        sender = self._sender
        sender.barriers.add(sender.sensor.produced(), sender.turn, passed)

    def _read(self) -> None:
        sender = self._sender
        budget = BYTES if self._rate is None else min(BYTES, max(1, self._rate // 2))
        self._more()
        tasks = [self._todo.popleft() for _ in range(min(FILES, len(self._todo)))]
        root = sender.index.root
        tasks = [task for task in tasks if task.id == root or sender.index.slots_of(task.id)]
        if sender.exclude:
            for task in tasks:
                task.excluded = partial(self._excluded, sender.index.path(task.id) or b"")
        sender.intake.fence()  # so that whatever is written from here on is told
        watch = sender.table.watch(task.id for task in tasks)
        sender.worker.submit(partial(_read_all, sender.source, tasks, budget), partial(self._drained, watch))

    def _excluded(self, directory: bytes, name: bytes, is_directory: bool) -> bool:
        return self._sender.exclude.matches(b"/".join(filter(None, (directory, name))), is_directory)

    def _drained(self, watch: set[FileId], result: tuple[list[_Reading], list[_Task]] | Exception) -> None:
        if isinstance(result, Exception):
            raise result
        readings, unread = result
        self._todo.extendleft(reversed(unread))
        if self._rate is not None:
            cost = sum(max(reading.length, 4096) for reading in readings)
            self._next = max(self._next, time.monotonic()) + cost / self._rate
        self._barrier(partial(self._check, watch, readings))

    def _check(self, watch: set[FileId], readings: list[_Reading]) -> None:
        clean = [reading for reading in readings if not reading.error and self._clean(watch, reading)]
        for reading in readings:
            if reading.error and self._clean(watch, reading):
                self._judged(reading, [Found(reading.task.id, UNREADABLE, reason=reading.error)])
        self._ask(watch, clean)

    def _ask(self, watch: set[FileId], readings: list[_Reading]) -> None:
        """Ask about some of them, or a part of one, and about the rest when that is answered."""
        parts: list[tuple[_Reading, int]] = []
        question: list[items.Item] = []
        weight = 0
        while readings and weight < QUESTION:
            reading, first = readings[0], readings[0].asked
            while reading.asked < len(reading.items) and weight < QUESTION:
                question.append(reading.items[reading.asked])
                weight += _weight(question[-1])
                reading.asked += 1
            parts.append((reading, first))
            if reading.asked == len(reading.items):
                readings.pop(0)
        if not parts or self._ended:
            self._leave(watch)
            self.turn()
            return
        self._sender.dialogue.ask({"op": "compare", "items": question}, partial(self._answered, watch, parts, readings))

    def _leave(self, watch: set[FileId]) -> None:
        self._sender.table.unwatch(watch)
        self._busy -= 1

    def _answered(
        self, watch: set[FileId], parts: list[tuple[_Reading, int]], more: list[_Reading], body: dict[str, Any]
    ) -> None:
        asked = [(reading, number) for reading, first in parts for number in range(first, reading.asked)]
        refusal = inquiry.refusal(body)
        if refusal is not None:
            self._leave(watch)
            if self._rate is None:
                self._end(refusal)
            else:  # nobody waits for it: it goes on when there is a connection
                whole = dict.fromkeys(id(reading.task) for reading, _ in parts)
                self._todo.extend(reading.task for reading, _ in parts)
                self._todo.extend(reading.task for reading in more if id(reading.task) not in whole)
                self._next = time.monotonic() + RETRY
            return
        findings = inquiry.findings(body, [reading.spans[number] for reading, number in asked])
        for (reading, number), finding in zip(asked, findings, strict=True):
            for one in found_of(reading.task.id, finding):
                reading.found.setdefault((one.kind, one.names), one)
            span = reading.spans[number]
            if span is not None and finding.verdict is not None and finding.verdict.to < span.to:
                reading.rest = min(reading.rest or span.to, finding.verdict.to)
        for reading, _ in parts:
            if reading.asked == len(reading.items) and self._clean(watch, reading):
                self._judged(reading, list(reading.found.values()))
        self._ask(watch, more)

    def _clean(self, watch: set[FileId], reading: _Reading) -> bool:
        """Whether nobody has touched it since it was watched; else it is tried again."""
        task = reading.task
        if task.id in watch:
            return True
        if self._sender.index.is_member(task.id):
            task.tries += 1
            if task.tries < TRIES:
                self._todo.append(task)
            else:
                self._unsettled.add(task.id)
                self._continue(reading)
        return False

    def _judged(self, reading: _Reading, found: list[Found]) -> None:
        task = reading.task
        if found and not task.again:
            self._todo.appendleft(_Task(task.id, task.at, task.tries, again=True))
            return
        if task.at == 0:
            self.files += 1
        self.bytes += reading.length
        for one in found:
            self._found(one)
        self._continue(reading)

    def _continue(self, reading: _Reading) -> None:
        if reading.rest is not None:
            self._todo.appendleft(_Task(reading.task.id, reading.rest))


def _weight(item: items.Item) -> int:
    return 200 + 60 * len(item.get("names", ())) + len(item["blocks"]["digests"] if "blocks" in item else "")


def _read_all(source: Any, tasks: list[_Task], budget: int) -> tuple[list[_Reading], list[_Task]]:
    """In a thread: the readings of as many tasks as `budget` bytes allow, at least one, and the other tasks."""
    readings: list[_Reading] = []
    for number, task in enumerate(tasks):
        if budget <= 0:
            return readings, tasks[number:]
        reading = _Reading(task)
        try:
            _read_one(source, reading, budget)
        except Stale:
            continue  # its names will tell
        except OSError as error:
            reading.error = f"the source's cannot be read: {error.strerror}"
        readings.append(reading)
        budget -= reading.length
    return readings, []


def _read_one(source: Any, reading: _Reading, budget: int) -> None:
    task = reading.task
    fd = source.open_to_read(task.id)
    try:
        if task.at == 0:
            reading.items += items.of_inode(source, fd, task.id, task.excluded)
            if reading.items[0]["is"]["kind"] != Kind.FILE:
                reading.spans += [None] * len(reading.items)
                return
        size = os.fstat(fd).st_size
        at = task.at
        block = blocks.FINE if task.again else blocks.COARSE
        while at < size and (budget > 0 or at == task.at):
            span = blocks.describe(fd, at, size, block)
            if span.to == span.at:
                break  # it was cut off meanwhile
            item = items.of_content(task.id, span)
            if reading.items and "blocks" not in reading.items[0]:
                reading.items[0] |= item
                reading.spans.append(span)
            else:
                reading.items.append(item)
                reading.spans.append(span)
            read = span.data().total
            reading.length += read
            budget -= read
            at = span.to
        if not reading.spans:
            reading.spans.append(None)
        reading.rest = at if at < size else None
    finally:
        os.close(fd)

"""Who wrote what is owed: for each inode its writers and how many bytes each has written.

Takes the process and the control group of records; gives `Writer`s, the same one for as long as the process has that
name, and `Share`s that go where the owed state goes. Names are asked for when a writer is first met and once a second
while it writes, a bounded number a batch: a process that has ended by then has none. Pure but for those questions.

Memory is bounded by what is owed: a writer lives as long as a share of it does, and a share has a few of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

from replicator.model import FileId

MOST: Final = 8
"""Writers of one inode that are told apart."""
QUESTIONS: Final = 64
"""Writers that are asked about in one batch."""
FRESH: Final = 1_000_000_000
"""For how long a name holds, ns."""
KNOWN: Final = 4096
"""Writers that are remembered beside what is owed."""
STRANGERS: Final = 1 << 14
"""Inodes without a name in the tree (yet) whose writers are remembered."""


class Writer:
    """A process, in a control group."""

    __slots__ = ("cgroup", "container", "due", "pid", "process")

    def __init__(self, pid: int, cgroup: int) -> None:
        self.pid = pid
        self.cgroup = cgroup
        self.process: str | None = None
        """What it was called; None if that is not known."""
        self.container: str | None = None
        """The control group's path, likewise."""
        self.due = 0
        """When to ask again, CLOCK_MONOTONIC in ns."""


OTHERS: Final = Writer(0, 0)
"""Whoever wrote to an inode beside the first few."""


class Share:
    """The writers of one inode, with the bytes that each has written to it."""

    __slots__ = ("_bytes", "_more", "_writer")

    def __init__(self) -> None:
        # One writer is by far the commonest: a dictionary for each inode would cost four times as much.
        self._writer: Writer | None = None
        self._bytes = 0
        self._more: dict[Writer, int] | None = None

    def add(self, writer: Writer, written: int) -> None:
        """It wrote so many bytes more; 0 for other changes."""
        if self._writer is writer:
            self._bytes += written
        elif self._writer is None:
            self._writer, self._bytes = writer, written
        else:
            more = self._more
            if more is None:
                more = self._more = {}
            if writer not in more and len(more) >= MOST - 1:
                writer = OTHERS
            more[writer] = more.get(writer, 0) + written

    def update(self, other: Share) -> None:
        """All that `other` has, too."""
        for writer, written in other:
            self.add(writer, written)

    def __iter__(self) -> Iterator[tuple[Writer, int]]:
        if self._writer is not None:
            yield self._writer, self._bytes
            if self._more is not None:
                yield from self._more.items()

    def __bool__(self) -> bool:
        return self._writer is not None


class Writers:
    """All writers that were met lately."""

    def __init__(
        self,
        process: Callable[[int], str | None] = lambda pid: None,
        container: Callable[[int], str | None] = lambda cgroup: None,
    ) -> None:
        """`process` gives the name of a running process, `container` the path of a control group, or None."""
        self._process = process
        self._container = container
        self._known: dict[tuple[int, int], Writer] = {}
        self._strangers: OrderedDict[FileId, Share] = OrderedDict()
        self._now = 0
        self._questions = 0

    def begin(self, now: int) -> None:
        """A batch begins at `now`, CLOCK_MONOTONIC in ns."""
        self._now = now
        self._questions = QUESTIONS

    def of(self, pid: int, cgroup: int) -> Writer:
        """The process that has this number now."""
        key = pid, cgroup
        writer = self._known.get(key)
        if writer is not None and writer.due > self._now:
            return writer
        return self._ask(key, writer)

    def stranger(self, id: FileId) -> Share:
        """The share of an inode that is not in the tree (yet); the oldest ones are forgotten."""
        share = self._strangers.get(id)
        if share is None:
            if len(self._strangers) >= STRANGERS:
                self._strangers.popitem(
                    last=False
                )  # a plain dict would look for its first one, past all that were removed
            share = self._strangers[id] = Share()
        return share

    def welcome(self, id: FileId) -> Share:
        """The share of an inode that gets its first name in the tree; it is no stranger from here on."""
        return self._strangers.pop(id, None) or Share()

    def _ask(self, key: tuple[int, int], writer: Writer | None) -> Writer:
        if writer is None:
            writer = self._meet(key)
        if not self._questions:
            return writer  # and asks again in a later batch
        self._questions -= 1
        process = self._process(writer.pid)
        if process is not None and writer.process not in (None, process):
            # Another one has the number now, or the same one executes something else: what was, stays what it was.
            writer = self._meet(key)
        writer.process = process or writer.process
        writer.container = writer.container or self._container(writer.cgroup)
        writer.due = self._now + FRESH
        return writer

    def _meet(self, key: tuple[int, int]) -> Writer:
        if len(self._known) >= KNOWN:
            self._known.clear()
        writer = self._known[key] = Writer(*key)
        return writer

"""The sender: the real outbox, resolver, index, dirty table and reader over the simulated source.

What stands between them and the kernel is played here: system calls (the reader's `os`), looks at names, and the loop
that carries records and looks to where they belong. Between any two of these calls the source may change.
"""

from __future__ import annotations

import errno
import random
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np

import replicator.source.flight as flight_module
import replicator.source.pages as pages_module
import replicator.source.read as read_module
from replicator.barrier import Barriers
from replicator.capture.event import EVENT, EventFlag, EventKind
from replicator.dirty.merge import merge
from replicator.model import Facts, FileId, Kind, Slot
from replicator.source.flight import Flush
from replicator.source.outbox import Outbox, Payload
from replicator.source.pages import PageHashes
from replicator.source.read import Outcome, Reader
from replicator.tree.handles import Stale
from replicator.tree.resolver import Due, Found
from tests.model.filesystem import Node
from tests.model.world import World

BLOCK = 2
"""Bytes in a block of the simulated files: what a hole is made of."""
SLICE = 5
"""Bytes the reader takes at once: most files take more than one slice."""
_FORMATS = {Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}


class SourceCalls:
    """The world as the reader and the resolver see it: `os`, the source root, and the namespace in one."""

    SEEK_DATA, SEEK_HOLE = 3, 4
    fstype = "ext4"

    def __init__(self, world: World, rng: random.Random, restless: float) -> None:
        """`restless`: how probable it is that something happens in the source before a call."""
        self.world = world
        self.restless = restless
        self.drained = 0
        """The source's clock when the channels were last taken to their ends."""
        self._rng = rng
        self._open: dict[int, Node] = {}

    def _meanwhile(self) -> None:
        if self._rng.random() < self.restless:
            self.world.act()

    # ---- the namespace

    def lookup(self, slot: Slot) -> Found | None:
        self._meanwhile()
        directory = self.world.node(slot.parent)
        node = directory.names.get(slot.name) if directory else None
        return Found(node.id, node.kind) if node else None

    def names(self, directory: FileId) -> Sequence[bytes] | None:
        self._meanwhile()
        node = self.world.node(directory)
        return list(node.names) if node and node.nlink else None

    def alive(self, id: FileId) -> bool:
        self._meanwhile()
        node = self.world.node(id)
        return node is not None and node.nlink > 0

    # ---- the source root

    def open_to_read(self, id: FileId) -> int:
        self._meanwhile()
        node = self.world.node(id)
        if node is None:
            raise Stale(id)
        fd = next(number for number in range(100) if number not in self._open)
        self._open[fd] = node
        return fd

    # ---- os

    def close(self, fd: int) -> None:
        del self._open[fd]

    def fstat(self, fd: int) -> SimpleNamespace:
        self._meanwhile()
        node = self._open[fd]
        return SimpleNamespace(
            st_mode=_FORMATS[node.kind] | node.mode,
            st_size=len(node.data) if node.kind is Kind.FILE else 4096,
            st_nlink=node.nlink,
            st_uid=0,
            st_gid=0,
            st_mtime_ns=node.mtime_ns,
            st_ctime_ns=node.ctime_ns,
            st_rdev=0,
        )

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._meanwhile()
        return bytes(self._open[fd].data[offset : offset + length])

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        self._meanwhile()
        data = self._open[fd].data
        if offset >= len(data):
            raise OSError(errno.ENXIO, "beyond the end")
        for block in range(offset // BLOCK, -(-len(data) // BLOCK)):
            if any(data[block * BLOCK : block * BLOCK + BLOCK]) == (whence == self.SEEK_DATA):
                return max(offset, block * BLOCK)
        if whence == self.SEEK_DATA:
            raise OSError(errno.ENXIO, "only a hole is left")
        return len(data)

    def readlink(self, _path: bytes, *, dir_fd: int) -> bytes:
        return self._open[dir_fd].target

    # ---- replicator.syscalls

    def get_xattrs(self, fd: int) -> dict[bytes, bytes]:
        return dict(self._open[fd].xattrs)

    def membarrier(self) -> None:
        self._meanwhile()

    def sync_file_range(self, fd: int, start: int, length: int, _flags: int) -> None:
        self._meanwhile()
        self.world.clean(self._open[fd], start, start + length)
        self._meanwhile()

    # ---- time

    def time_ns(self) -> int:
        """Such that a file counts as settled if every change of it was drained."""
        return self.drained + flight_module.SETTLED_AFTER

    def monotonic_ns(self) -> int:
        return self.world.clock

    def monotonic(self) -> float:
        return 0.0


@contextmanager
def small_scale() -> Iterator[None]:
    """The reader with simulated calls and limits that fit simulated files."""
    with ExitStack() as stack:
        current = _Current()
        for name in ("os", "syscalls", "time"):
            stack.enter_context(mock.patch.object(read_module, name, current))
        stack.enter_context(mock.patch.object(pages_module, "PAGE", BLOCK))
        for name, value in (("SLICE", SLICE), ("HOLES_FROM", 6), ("PAGE", BLOCK), ("BEYOND_TRIES", 1)):
            stack.enter_context(mock.patch.object(read_module, name, value))
        yield


class _Current:
    """Stands for the modules that the reader calls, and passes on to the calls of the run that is under way."""

    calls: SourceCalls | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(_Current.calls, name)


@dataclass(slots=True)
class Names:
    """A question: which names are in these directories? And the answer."""

    directories: tuple[FileId, ...]
    found: dict[FileId, list[bytes]] = field(default_factory=dict)


@dataclass(slots=True)
class Nameless:
    """A question: which inodes have no name? And the answer."""

    found: list[FileId] = field(default_factory=list)


class Sender:
    """One instance of the sender: lives until its process ends."""

    def __init__(self, world: World, calls: SourceCalls, *, checking: bool) -> None:
        _Current.calls = calls
        self.world = world
        self.calls = calls
        self.outbox = Outbox(world.root, world.exclude, calls.time_ns, calls.time_ns)
        self.barriers = Barriers(self.outbox.generations)
        self.questions: list[Names | Nameless] = []
        self.phase = "scanning"
        self.turn = 0
        self.looked = False
        """Names were looked at since records were last merged to the end."""
        self._comparing: dict[FileId, Due] = {}
        self.outbox.checking = checking
        self.pages = PageHashes()
        self.reader = Reader(cast(Any, calls), self.pages)
        self.outcomes: list[Outcome] = []
        self.outbox.start(self.now)

    @property
    def now(self) -> int:
        """All clocks are one."""
        return self.world.clock

    # ---- the channels

    def take_bytes(self, count: int) -> None:
        """Carry some byte records to the dirty table."""
        records, self.world.bytes = self.world.bytes[:count], self.world.bytes[count:]
        if records:
            events = np.zeros(len(records), dtype=EVENT)
            for at, record in enumerate(records):
                event = events[at]
                event["ts"], event["kind"] = record.time, EventKind[record.kind]
                event["ino"], event["gen"] = record.id.ino, record.id.gen
                event["flags"] = EventFlag.MAPPED if record.mapped else 0
                event["off"], event["len"] = record.offset, record.length
            outbox = self.outbox
            merge(events, outbox.table, outbox.index.is_member, outbox.outsiders, outbox.writers)

    def take_looks(self, count: int) -> None:
        """Carry some looks to the resolver; what a name changed in is looked at too, for its times."""
        looks, self.world.looks = self.world.looks[:count], self.world.looks[count:]
        index = self.outbox.index
        for look in looks:
            if look.slot is not None and index.is_member(look.slot.parent):
                self.outbox.resolver.look(look.slot, self.now)
                self.outbox.table.mark(look.slot.parent, self.now)
            if look.id is not None and index.is_member(look.id):
                self.outbox.table.mark(look.id, self.now)

    def looks_lost(self) -> None:
        """The queue of looks overflowed: every name, and every inode's attributes, may have changed."""
        index = self.outbox.index
        for id in list(index.subtree(index.root)):
            if index.is_directory(id):
                self.outbox.resolver.list(id, self.now)
        self.outbox.compare_all(self.now)

    # ---- the loop's other duties

    def resolve(self) -> None:
        self.world.clock += 1
        changes = self.outbox.resolver.resolve(self.calls, self.now)
        if self.world.trace is not None:
            self.world.note(
                f"sender: slots {[(slot, self.outbox.index.get(slot)) for slot, *_ in changes.slots]}"
                f" members {[id for id, *_ in changes.members]} dead {[id for id, *_ in changes.dead]}"
            )
        self.outbox.changed(changes, self.now)
        self.looked = True
        if self.phase == "scanning" and not self.outbox.resolver.workable:
            self.outbox.resolver.complete = True
            self.phase = "sending"
            self._after_all(self._scanned)

    def drain(self) -> None:
        """Everything that was told so far is taken; then some time passes."""
        self.take_bytes(len(self.world.bytes))
        self.take_looks(len(self.world.looks))
        self.world.clock += 50_000_000
        self.calls.drained = self.world.clock
        self.turn += 1
        ready = self.phase == "ready"
        self.barriers.turn(0, self.turn, scanned=ready or self.phase == "sending", in_sync=ready)

    def _after_all(self, passed: Callable[[], None]) -> None:
        self.barriers.add(0, self.turn, passed, early=True)

    # ---- what the replica has and the source has not

    def _scanned(self) -> None:
        outbox = self.outbox
        if not outbox.checking:
            self.phase = "ready"
            return
        for id in outbox.index.subtree(outbox.index.root):
            if outbox.index.is_directory(id):
                outbox.compare_names(id, self.now)
        self._after_all(self._ask_nameless)

    def ask_names(self) -> None:
        if self._comparing or not self.outbox.unlisted or self.phase not in ("sending", "ready"):
            return
        self._comparing = self.outbox.take_unlisted(3)
        if self._comparing:
            self.questions.append(Names(tuple(self._comparing)))

    def _ask_nameless(self) -> None:
        self.questions.append(Nameless())

    def hear(self, reply: Names | Nameless) -> None:
        """What the receiver has, asked for in the stream of epochs."""
        if isinstance(reply, Names):
            compared, self._comparing = self._comparing, {}
            for directory, names in reply.found.items():
                known, due = self.outbox.index.children(directory), compared[directory]
                for name in names:
                    if name not in known:
                        self.outbox.resolver.look(Slot(directory, name), self.now, due.generation, force=True)
            for due in compared.values():
                self.outbox.generations.release(due.generation)
            return
        dead = [id for id in reply.found if not self.outbox.index.is_member(id)]
        for id in dead:
            self.outbox.declare_dead(id, self.now)
        if dead:
            self._after_all(self._ask_nameless)
        else:
            self.outbox.checking = False
            self.phase = "ready"

    def disconnected(self, unanswered: Sequence[Names | Nameless]) -> None:
        self.outbox.disconnected()
        self.pages.clear()
        for question in unanswered:
            if isinstance(question, Names):
                compared, self._comparing = self._comparing, {}
                for id, due in compared.items():
                    self.outbox.compare_names(id, due.since, due.generation)
                    self.outbox.generations.release(due.generation)
            else:
                self.phase = "scanning"

    def compose(self) -> tuple[Facts, Payload] | None:
        """The next epoch. Slots go with the bytes from before they were looked at, so these are merged first."""
        if self.looked:
            self.take_bytes(len(self.world.bytes))
            self.looked = False
        return self.outbox.compose()

    def start_reads(self, count: int) -> None:
        for flush in self.outbox.next_reads(self.now, count, big=6, big_items=1):
            self.outcomes.append(self.reader.read(flush))

    def finish_read(self) -> None:
        """One of the workers hands its result back."""
        outcome = self.outcomes.pop(0)
        flush: Flush = outcome.flush
        if not self.outbox.current(flush):
            return
        if outcome.gone:
            self.outbox.gone(flush)
        elif outcome.error is not None:
            self.outbox.failed(flush, self.now)
        else:
            assert outcome.part is not None
            if outcome.beyond:
                self.outbox.owe_again(flush, outcome.beyond, self.now)
            self.pages.forget(flush.owed.id, outcome.sent)
            self.pages.remember(flush.owed.id, outcome.hashes)
            self.outbox.read_done(outcome.part, self.now)

    def idle(self) -> bool:
        """Nothing is owed any more."""
        outbox = self.outbox
        told = not (self.world.bytes or self.world.looks)
        return told and self.phase == "ready" and not (self.outcomes or outbox.generations.owed)

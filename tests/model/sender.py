"""The sender: the real outbox, resolver, index, dirty table and reader over the simulated source.

What stands between them and the kernel is played here: system calls (the reader's `os`), looks at names, and the loop
that carries records and looks to where they belong. Between any two of these calls the source may change.
"""

from __future__ import annotations

import errno
import random
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np

import replicator.mirror.plan as plan_module
import replicator.source.flight as flight_module
import replicator.source.pages as pages_module
import replicator.source.read as read_module
from replicator.barrier import Barriers
from replicator.capture.event import EVENT, EventFlag, EventKind, Events
from replicator.capture.names import InodeLook, ListLook, Overflow, SlotLook
from replicator.dirty.generations import Generations
from replicator.dirty.merge import merge
from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import Owed
from replicator.journal.journal import Journal
from replicator.journal.marks import Doubt, Mark, Partial, Whole
from replicator.model import Answer, Facts, FileId, Kind, Slot
from replicator.scan import INODE
from replicator.source import snapshot
from replicator.source.epochs import Payload
from replicator.source.flight import Flush
from replicator.source.outbox import Outbox
from replicator.source.pages import PageHashes
from replicator.source.read import Outcome, Reader
from replicator.tree.handles import Stale
from replicator.tree.index import TreeIndex
from replicator.tree.resolver import Due, Found
from replicator.tree.stamps import Differences
from replicator.tree.store import Committed, IndexStore, Told
from tests.model.filesystem import Node
from tests.model.world import World

BLOCK = 2
"""Bytes in a block of the simulated files: what a hole is made of."""
COMPARED_FROM = 3
"""Bytes of a file from which on it is compared instead of sent."""
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

    def meanwhile(self) -> None:
        if self._rng.random() < self.restless:
            self.world.act()

    # ---- the namespace

    def lookup(self, slot: Slot) -> Found | None:
        self.meanwhile()
        directory = self.world.node(slot.parent)
        node = directory.names.get(slot.name) if directory else None
        return Found(node.id, node.kind) if node else None

    def names(self, directory: FileId) -> dict[bytes, int] | None:
        self.meanwhile()
        node = self.world.node(directory)
        return {name: child.id.ino for name, child in node.names.items()} if node and node.nlink else None

    def alive(self, id: FileId) -> bool:
        self.meanwhile()
        node = self.world.node(id)
        return node is not None and node.nlink > 0

    # ---- the source root

    def open_to_read(self, id: FileId, *, regular: bool = False) -> int:
        self.meanwhile()
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
        self.meanwhile()
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
        self.meanwhile()
        return bytes(self._open[fd].data[offset : offset + length])

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        self.meanwhile()
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
        self.meanwhile()

    def sync_file_range(self, fd: int, start: int, length: int, _flags: int) -> None:
        self.meanwhile()
        node = self._open[fd]
        self.world.clean(node, start, start + length if length else len(node.data))
        self.meanwhile()

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
        for module in (plan_module, read_module):
            stack.enter_context(mock.patch.object(module, "COMPARED_FROM", COMPARED_FROM))
        for name, value in (
            ("SLICE", SLICE),
            ("LONG_WAIT", 5),
            ("HOLES_FROM", 6),
            ("PAGE", BLOCK),
            ("BEYOND_TRIES", 1),
        ):
            stack.enter_context(mock.patch.object(read_module, name, value))
        yield


class _Current:
    """Stands for the modules that the reader calls, and passes on to the calls of the run that is under way."""

    calls: SourceCalls | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(_Current.calls, name)


@dataclass(slots=True)
class Names:
    """A question: are these the names in these directories? And, of those where they are not, the answer."""

    directories: dict[FileId, dict[bytes, FileId]]
    found: dict[FileId, list[bytes]] = field(default_factory=dict)


@dataclass(slots=True)
class Nameless:
    """A question: which inodes have no name? And the answer."""

    found: list[FileId] = field(default_factory=list)


@dataclass(slots=True)
class Content:
    """A question: where does the replica's content differ from this? And the answer."""

    owed: Owed
    data: bytes
    found: list[tuple[int, int]] | None = None
    """None if the replica has no such file."""

    def judge(self, data: bytes | None) -> None:
        if data is None:
            return
        blocks = [(at, min(at + BLOCK, len(self.data))) for at in range(0, len(self.data), BLOCK)]
        self.found = [(start, end) for start, end in blocks if self.data[start:end] != data[start:end]]


Question = Names | Nameless | Content


class Sender:
    """One process of the sender."""

    def __init__(
        self, world: World, calls: SourceCalls, *, checking: bool, memory: Memory | None = None, gap: bool = False
    ) -> None:
        """`memory`: what a predecessor left, if it left anything; `gap`: there were no hooks for a while."""
        _Current.calls = calls
        self.world = world
        self.calls = calls
        self.memory = memory or Memory(world.root)
        self.outbox = Outbox(
            world.root,
            world.exclude,
            calls.time_ns,
            calls.time_ns,
            index=self.memory.index(),
            last_epoch=self.memory.epoch,
        )
        self.journal = self.memory.journal(self.outbox.generations, self._owed)
        self.barriers = Barriers(self.outbox.generations)
        self.questions: list[Question] = []
        self.phase = "scanning"
        self.turn = 0
        self.looked = False
        """Names were looked at since records were last merged to the end."""
        self._comparing: dict[FileId, Due] = {}
        self.outbox.checking = checking
        self.pages = PageHashes()
        self.reader = Reader(cast(Any, calls), self.pages)
        self.outcomes: list[Outcome] = []
        self.survey: list[Callable[[], None]] = []
        """What is still to be done of a survey."""
        self._token: int | None = None
        if self.memory.complete:
            self._go_on(gap=gap)
        else:
            self.outbox.start(self.now)

    # ---- what a predecessor left

    def _go_on(self, *, gap: bool) -> None:
        self.outbox.succeeding = True
        self.outbox.outsiders.forget()
        items = self.journal.restored()
        for item in items or ():
            if not isinstance(item, list):
                self._merge(item)
                continue
            for mark in item:
                self._restore(mark)
        if items is None:
            self.journal.forget()
        else:
            self.journal.restored_all()
        if gap or items is None:
            self.begin_survey()
        self.journal.begin(self.now, anew=items is None)
        if self._token is not None:
            self.journal.marks([Overflow()], self.now)

    def _restore(self, mark: Mark) -> None:
        index, resolver = self.outbox.index, self.outbox.resolver
        match mark:
            case SlotLook(slot, _) if index.is_member(slot.parent):
                resolver.look(slot, self.now, force=True)
            case InodeLook(id) if index.is_member(id):
                self.outbox.table.mark(id, self.now)
            case ListLook(id) if index.is_directory(id):
                resolver.list(id, self.now)
                self.outbox.unlisted.add(id, self.now)
            case Overflow():
                self.begin_survey()
            case Whole() | Doubt() | Partial():
                snapshot.restore(self.outbox, mark, self.now)

    def _owed(self) -> Iterator[Mark]:
        yield from snapshot.marks(self.outbox)
        if self._token is not None:
            yield Overflow()

    def begin_survey(self) -> None:
        """Find what nobody told of: stamps first, then the inodes, then one by one what differs."""
        if self._token is None:
            self._token = self.outbox.generations.hold()
        self.outbox.news.doubting = True
        for id in list(self.outbox.index.changed()):
            self.outbox.suspicion.suspect(id, self.now, self._token, content=False)
        self.survey.append(self._load_stamps)

    def go_on_with_survey(self) -> None:
        """One step of it."""
        if self.survey:
            self.survey.pop(0)()
        if not self.survey and self._token is not None:
            self.outbox.news.doubting = False
            self.outbox.generations.release(self._token)
            self._token = None

    def _load_stamps(self) -> None:
        self.world.sync()
        self.outbox.outsiders.remember()
        differences = Differences(self.memory.store.stamps(0))
        self.survey.append(lambda: self._scan(differences))

    def _scan(self, differences: Differences) -> None:
        rows = np.zeros(len(self.world.nodes), INODE)
        for row, node in zip(rows, self.world.nodes.values(), strict=True):
            size = len(node.data) if node.kind is Kind.FILE else 4096
            row["ino"], row["gen"], row["mode"] = node.id.ino, node.id.gen, _FORMATS[node.kind]
            row["size"], row["ctime"], row["mtime"] = size, node.ctime_ns, node.mtime_ns
        suspicion, token = self.outbox.suspicion, self._token
        changed = differences.changed(rows[np.argsort(rows["ino"])])
        numbering = partial(suspicion.suspect, numbers=True)
        for hand, ids in ((numbering, changed), (suspicion.missed, differences.missing())):
            for id in ids:
                self.survey.append(lambda hand=hand, id=id: hand(id, self.now, token))  # type: ignore[misc]

    # ---- what it leaves

    def write_index(self) -> None:
        """Begin to write what became durable."""
        self.memory.begin(self.outbox, self.journal, self.now, complete=self.phase == "ready")
        self.journal.tick(self.now)

    def index_written(self) -> None:
        """That has come to its end."""
        self.memory.end(self.outbox, self.journal)

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
            self.journal.events(events.tobytes(), self.now)
            self._merge(events)

    def _merge(self, events: Events) -> None:
        outbox = self.outbox
        merge(events, outbox.table, outbox.index.is_member, outbox.outsiders, outbox.writers)

    def take_looks(self, count: int) -> None:
        """Carry some looks to the resolver; what a name changed in is looked at too, for its times."""
        looks, self.world.looks = self.world.looks[:count], self.world.looks[count:]
        index = self.outbox.index
        for look in looks:
            marks: list[Mark] = (
                [SlotLook(look.slot, None), InodeLook(look.slot.parent)] if look.slot is not None else []
            )
            self.journal.marks([*marks, *([InodeLook(look.id)] if look.id is not None else [])], self.now)
            if look.slot is not None and index.is_member(look.slot.parent):
                self.outbox.resolver.look(look.slot, self.now)
                self.outbox.table.mark(look.slot.parent, self.now)
            if look.id is not None and index.is_member(look.id):
                self.outbox.table.mark(look.id, self.now)

    def looks_lost(self) -> None:
        """The queue of looks overflowed: every name, and every inode's attributes, may have changed."""
        doubtful = self.outbox.suspicion.since(0)
        marks: list[Mark] = [Overflow(), *(InodeLook(id) for id in doubtful)]
        self.journal.marks([*marks, *(ListLook(id) for id in doubtful if self.outbox.index.is_directory(id))], self.now)
        self.outbox.suspicion.distrust(doubtful, self.now, content=False)
        self.begin_survey()

    # ---- the loop's other duties

    def resolve(self) -> None:
        self.world.clock += 1
        changes = self.outbox.resolver.resolve(self.calls, self.now)
        self.journal.marks(snapshot.found(changes), self.now)
        if self.world.trace is not None:
            self.world.note(
                f"sender: slots {[(slot, self.outbox.index.get(slot)) for slot, *_ in changes.slots]}"
                f" members {[id for id, *_ in changes.members]} dead {[id for id, *_ in changes.dead]}"
            )
        self.outbox.changed(changes, self.now)
        self.looked = True
        if self.phase == "scanning" and not self.outbox.resolver.workable and self._token is None:
            self.outbox.resolver.complete = True
            for id in self.outbox.index.nameless():
                self.outbox.resolver.doubt(id, self.now)
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
            if self.memory.complete:
                self._ask_nameless()
            else:
                self._ready()
            return
        for id in outbox.index.subtree(outbox.index.root):
            if outbox.index.is_directory(id):
                outbox.unlisted.add(id, self.now)
        self._after_all(self._ask_nameless)

    def ask_names(self) -> None:
        if self._comparing or not self.outbox.unlisted or self.phase not in ("sending", "ready"):
            return
        self._comparing = self.outbox.unlisted.take(3, self.now)
        if self._comparing:
            self.questions.append(Names({id: self.outbox.index.children(id) for id in self._comparing}))

    def _ask_nameless(self) -> None:
        self.questions.append(Nameless())

    def hear(self, reply: Question) -> None:
        """What the receiver has, asked for in the stream of epochs."""
        if isinstance(reply, Content):
            if reply.found is None:
                self.outbox.verdicts.failed(reply.owed, self.now, whole=True)
            else:
                self.outbox.verdicts.compared(reply.owed, RangeSet(reply.found), len(reply.data))
            return
        if isinstance(reply, Names):
            compared, self._comparing = self._comparing, {}
            for directory, names in reply.found.items():
                due = compared[directory]
                for name in sorted(self.outbox.index.children(directory).keys() | set(names)):
                    self.outbox.resolver.look(Slot(directory, name), self.now, due.generation, force=True)
            self.outbox.unlisted.answered(compared)
            for due in compared.values():
                self.outbox.generations.release(due.generation)
            return
        dead = [id for id in reply.found if not self.outbox.index.is_member(id)]
        for id in dead:
            self.outbox.debts.dead(id, self.now)
        if dead:
            self._after_all(self._ask_nameless)
        else:
            self.outbox.checking = False
            self._ready()

    def applied(self, answer: Answer) -> None:
        """The receiver answers an epoch."""
        self.journal.marks((Whole(id) for id in answer.needs), self.now)
        self.journal.marks((Doubt(id) for id in answer.doubts), self.now)
        self.journal.marks((SlotLook(slot, None) for slot in answer.looks), self.now)
        self.outbox.applied(answer, self.now)

    def _ready(self) -> None:
        self.phase = "ready"
        self.outbox.succeeding = False
        if not self.memory.complete:
            self.journal.begin(self.now, anew=True)

    def compare_content(self) -> None:
        """Have a file in doubt compared, as it is now: with its mappings written out, and nobody within a write."""
        for owed in self.outbox.doubts.begin(1):
            node = self.world.node(owed.id)
            if node is None or not node.nlink:
                self.outbox.verdicts.gone(owed)
                continue
            self.world.clean(node, 0, len(node.data))
            self.calls.meanwhile()
            self.questions.append(Content(owed, bytes(node.data)))

    def inodes_lost(self, ids: Sequence[FileId]) -> None:
        """The ring overflowed, and it is known whose records did not fit."""
        members = [id for id in dict.fromkeys(ids) if self.outbox.index.is_member(id)]
        self.journal.marks((Doubt(id) for id in members), self.now)
        for id in ids:
            if id in members:
                self.outbox.suspicion.doubt(id, self.now, lost=True)
            else:
                self.outbox.outsiders.note(id)

    def records_lost(self) -> None:
        """The ring overflowed: nobody knows what was written."""
        doubtful = self.outbox.suspicion.since(0)
        self.journal.marks([Overflow(), *(Doubt(id) for id in doubtful)], self.now)
        self.outbox.suspicion.distrust(doubtful, self.now, content=True)
        self.outbox.outsiders.forget()
        self.begin_survey()

    def disconnected(self, unanswered: Sequence[Question]) -> None:
        self.outbox.disconnected()
        self.pages.clear()
        for question in unanswered:
            if isinstance(question, Names):
                compared, self._comparing = self._comparing, {}
                self.outbox.unlisted.answered(compared)
                for id, due in compared.items():
                    self.outbox.unlisted.add(id, due.since, due.generation)
                    self.outbox.generations.release(due.generation)
            elif isinstance(question, Nameless):
                self.phase = "scanning"

    def compose(self) -> tuple[Facts, Payload] | None:
        """The next epoch. Slots go with the bytes from before they were looked at, so these are merged first."""
        if self.looked:
            self.take_bytes(len(self.world.bytes))
            self.looked = False
        self.memory.epoch = self.outbox.epochs.last + 1
        return self.outbox.epochs.compose()

    def start_reads(self, count: int) -> None:
        for flush in self.outbox.reads.begin(self.now, count, big=6, big_items=1):
            self.outcomes.append(self.reader.read(flush))

    def finish_read(self) -> None:
        """One of the workers hands its result back."""
        outcome = self.outcomes.pop(0)
        flush: Flush = outcome.flush
        if not self.outbox.reads.current(flush):
            return
        if outcome.gone:
            self.outbox.reads.gone(flush)
        elif outcome.error is not None:
            self.outbox.reads.failed(flush, self.now)
        elif outcome.early:
            self.outbox.reads.put_off(flush)
        else:
            assert outcome.part is not None
            if outcome.beyond:
                self.outbox.reads.owe_again(flush, outcome.beyond, self.now)
            self.pages.forget(flush.owed.id, outcome.sent)
            self.pages.remember(flush.owed.id, outcome.hashes)
            self.outbox.reads.done(outcome.part, self.now)

    def idle(self) -> bool:
        """Nothing is owed any more."""
        outbox = self.outbox
        told = not (self.world.bytes or self.world.looks)
        return told and self.phase == "ready" and not (self.outcomes or outbox.generations.owed)


class Memory:
    """What a sender leaves to its successor: an index and a journal, in files. Removed when nobody has it any more."""

    def __init__(self, root: FileId) -> None:
        self._root = root
        self._directory = tempfile.TemporaryDirectory(prefix="rsyncfs-model-", dir="/dev/shm")
        self.path = Path(self._directory.name)
        self.store = IndexStore(self.path / "index")
        self.epoch = 0
        """None later was sent."""
        self.complete = False
        self._index: TreeIndex | None = None
        self._told: list[Told] = []
        self._written: Committed | None = None
        self._settled = 0
        self._completing = False
        self._journal: Journal | None = None

    def index(self) -> TreeIndex:
        self._told, self._written, self._settled = [], None, 0
        self.store.settle(self._root)
        self._index = TreeIndex(self._root, self.store)
        return self._index

    def close(self) -> None:
        """Nobody comes after."""
        if self._journal is not None:
            self._journal.close()
        self.store.close()
        self._directory.cleanup()

    def journal(self, generations: Generations, owed: Callable[[], Iterator[Mark]]) -> Journal:
        if self._journal is not None:
            self._journal.close()
        self._journal = Journal(self.path / "journal", 1, generations, owed, lambda: None)
        return self._journal

    def begin(self, outbox: Outbox, journal: Journal, now: int, *, complete: bool) -> None:
        """The index has it; the process has not heard so."""
        if self._written is not None and self._written.told:
            return
        self._told = outbox.news.take(now)
        self._settled = journal.settled()
        if complete and not self.complete:
            self._completing = True
        self._written = self.store.commit(self._told, {})
        if self._completing:
            self.complete = True

    def end(self, outbox: Outbox, journal: Journal) -> None:
        if self._written is not None:
            outbox.index.committed(self._written, outbox.news.later())
        journal.remove(self._settled)
        self._written, self._settled = None, 0

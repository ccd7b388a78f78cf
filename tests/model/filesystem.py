"""The source: a filesystem in memory that says of its changes what a kernel says, and no more.

Inode numbers are reused at once, with a new generation. Below `top` there is the watched tree (`root`) and a directory
outside it. Every operation does what the system call does, or nothing if the call would fail; it tells two channels,
which nobody reads in order: byte records (with inode, offset, length) and name looks, which merge into an older
position while they wait. A mark on the inode says what the world knows better than any of its readers: whether it has
been in the tree without a break, and whether its data had to be sent again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from replicator.model import FileId, Kind, Slot
from replicator.tree.exclude import Exclude

BIGGEST = 12
"""Bytes a file has at most: enough for a head, a middle and a tail."""
FOLIO = 4
"""Bytes in a folio: the unit in which stores through a mapping are told."""


@dataclass(slots=True, eq=False)
class Node:
    """One inode."""

    id: FileId
    kind: Kind
    nlink: int = 0
    opens: int = 0
    linkable: bool = False
    """Made by O_TMPFILE and not linked yet."""
    data: bytearray = field(default_factory=bytearray)
    mode: int = 0o644
    mtime_ns: int = 0
    ctime_ns: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    target: bytes = b""
    names: dict[bytes, Node] = field(default_factory=dict)
    parent: Node | None = None
    late: tuple[int, int] | None = None
    """An append (offset, length) that was told before it took effect."""
    mapped: bool = False
    """It has, or had, a writable shared mapping."""
    writable: set[int] = field(default_factory=set)
    """Folios that can be stored to without a fault: nobody is told."""
    stayed: bool = False
    """It has a name in the tree, and had since the mark was set."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """A record of the byte channel; `kind` is the name of an EventKind."""

    kind: str
    id: FileId
    offset: int
    length: int
    time: int
    mapped: bool


@dataclass(frozen=True, slots=True)
class Look:
    """A look of the name channel: at a slot, or (slot None) at an inode's attributes and names."""

    slot: Slot | None
    id: FileId | None
    says: FileId | None = field(default=None, compare=False)
    """What the event claims that the slot means from now on. Nobody should believe it: events merge and come late."""


class Filesystem:
    """The filesystem and its two channels."""

    generation_step = 1

    def __init__(self, rng: random.Random, exclude: Exclude) -> None:
        self.rng = rng
        self.exclude = exclude
        self.clock = 1_000
        self.bytes: list[Bytes] = []
        self.looks: list[Look] = []
        self.merged = 0
        self.trace: list[str] | None = None
        """What happened, in order, by all sides; kept only when somebody is to read it."""
        self._free: list[int] = []
        self._next = 10
        self._generation = 0
        self._value = 0
        self.nodes: dict[FileId, Node] = {}
        self.top = self._make(Kind.DIRECTORY)
        self.tree = self._make(Kind.DIRECTORY)
        self.outside = self._make(Kind.DIRECTORY)
        self._attach(self.top, b"tree", self.tree)
        self._attach(self.top, b"outside", self.outside)

    @property
    def root(self) -> FileId:
        return self.tree.id

    # ---- what a reader may ask

    def node(self, id: FileId) -> Node | None:
        """By handle: the live inode, with or without a name; None is ESTALE."""
        return self.nodes.get(id)

    def inside(self, node: Node) -> bool:
        """Whether some name of it lies in the tree (the truth, which no reader can ask for)."""
        return node in self.included()

    def included(self) -> set[Node]:
        """All inodes with a name in the tree that is not excluded."""
        found: set[Node] = set()
        pending = [(b"", self.tree)]
        while pending:
            path, directory = pending.pop()
            for name, child in directory.names.items():
                if self.exclude and self.exclude.matches(path + name, child.kind is Kind.DIRECTORY):
                    continue
                found.add(child)
                if child.kind is Kind.DIRECTORY:
                    pending.append((path + name + b"/", child))
        return found

    def walk(self, top: Node) -> Iterator[Node]:
        """Everything below `top`, once per name."""
        pending = [top]
        while pending:
            for child in pending.pop().names.values():
                yield child
                if child.kind is Kind.DIRECTORY:
                    pending.append(child)

    # ---- telling

    def note(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(_FILE_ID.sub(r"<\1.\2>", text))

    def say(self, kind: str, node: Node, offset: int = 0, length: int = 0) -> None:
        if kind in ("WRITE", "TAIL") and self.rng.random() < 0.04:
            kind = "WHOLE"  # the record was lost and the inode marked instead
            node.stayed = False
        self.bytes.append(Bytes(kind, node.id, offset, length, self.clock, node.mapped))

    def look(self, slot: Slot | None, node: Node, *, gone: bool = False) -> None:
        """A name event about `node`; `gone`: it left the slot."""
        new = Look(slot, node.id, None if gone else node.id)
        if new in self.looks and self.rng.random() < 0.8:
            self.merged += 1
            return
        self.looks.append(new)

    # ---- operations; each returns whether it was possible

    def create(self, parent: Node, name: bytes, kind: Kind = Kind.FILE) -> bool:
        if parent.nlink == 0 or name in parent.names:
            return False
        node = self._make(kind)
        if kind is Kind.SYMLINK:
            node.target = b"to-%d" % self._fresh()
        if kind is Kind.FILE and self.rng.random() < 0.3:
            node.opens = 1
        self._attach(parent, name, node)
        self._touch(parent)
        self.look(Slot(parent.id, name), node)
        return True

    def tmpfile(self) -> bool:
        node = self._make(Kind.FILE)
        node.opens = 1
        node.linkable = True
        return True

    def link(self, node: Node, parent: Node, name: bytes) -> bool:
        if node.kind is Kind.DIRECTORY or parent.nlink == 0 or name in parent.names:
            return False
        if node.nlink == 0 and not node.linkable:
            return False
        node.linkable = False
        self._attach(parent, name, node)
        self._touch(parent)
        self._changed(node)
        self.look(None, node)
        self.look(Slot(parent.id, name), node)
        return True

    def unlink(self, parent: Node, name: bytes) -> bool:
        node = parent.names.get(name)
        if node is None or (node.kind is Kind.DIRECTORY and node.names):
            return False
        self._detach(parent, name)
        self._touch(parent)
        self._changed(node)
        self.look(None, node)
        self.look(Slot(parent.id, name), node, gone=True)
        self._reap(node)
        return True

    def rename(self, old: Node, old_name: bytes, new: Node, new_name: bytes) -> bool:
        node = old.names.get(old_name)
        over = new.names.get(new_name)
        if node is None or node is over or new.nlink == 0 or self._within(new, node):
            return False
        if over is not None:
            if (over.kind is Kind.DIRECTORY) != (node.kind is Kind.DIRECTORY) or over.names:
                return False
            self._detach(new, new_name)
            self._changed(over)
        self._detach(old, old_name, moving=True)
        self._attach(new, new_name, node)
        self._touch(old)
        self._touch(new)
        self._changed(node)
        self.look(Slot(old.id, old_name), node, gone=True)
        self.look(Slot(new.id, new_name), node)
        if over is not None:
            self.look(None, over)
            self._reap(over)
        self._left(node)
        return True

    def exchange(self, old: Node, old_name: bytes, new: Node, new_name: bytes) -> bool:
        one, two = old.names.get(old_name), new.names.get(new_name)
        if one is None or two is None or one is two or self._within(new, one) or self._within(old, two):
            return False
        self._detach(old, old_name, moving=True)
        self._detach(new, new_name, moving=True)
        self._attach(old, old_name, two)
        self._attach(new, new_name, one)
        for each in (old, new):
            self._touch(each)
        for node in (one, two):
            self._changed(node)
            self._left(node)
        self.look(Slot(old.id, old_name), one, gone=True)
        self.look(Slot(new.id, new_name), one)
        self.look(Slot(new.id, new_name), two, gone=True)
        self.look(Slot(old.id, old_name), two)
        return True

    def write(self, node: Node, offset: int, length: int) -> bool:
        if node.kind is not Kind.FILE or offset + length > BIGGEST or length <= 0:
            return False
        self._wrote(node)
        if len(node.data) < offset:
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + length] = bytes([self._fresh()]) * length
        node.xattrs.pop(b"security.capability", None)
        self.say("WRITE", node, offset, length)
        return True

    def truncate(self, node: Node, size: int) -> bool:
        if node.kind is not Kind.FILE or size > BIGGEST:
            return False
        self._wrote(node)
        if size < len(node.data):
            del node.data[size:]
            node.writable = {folio for folio in node.writable if folio * FOLIO < size}
        else:
            node.data.extend(bytes(size - len(node.data)))
        self.say("SIZE", node, size)
        return True

    def collapse(self, node: Node, offset: int, length: int) -> bool:
        self.finish_append(node)
        if node.kind is not Kind.FILE or length <= 0 or offset + length >= len(node.data):
            return False
        self._wrote(node)
        del node.data[offset : offset + length]
        node.writable.clear()
        self.say("TAIL", node, offset)
        return True

    def insert(self, node: Node, offset: int, length: int) -> bool:
        self.finish_append(node)
        if node.kind is not Kind.FILE or length <= 0 or offset >= len(node.data) or len(node.data) + length > BIGGEST:
            return False
        self._wrote(node)
        node.data[offset:offset] = bytes(length)
        node.writable.clear()
        self.say("TAIL", node, offset)
        return True

    def store(self, node: Node, offset: int) -> bool:
        """A byte through a mapping: only the first store into a clean folio is seen."""
        if node.kind is not Kind.FILE or offset >= len(node.data):
            return False
        folio = offset // FOLIO
        if folio not in node.writable:
            node.writable.add(folio)
            node.mapped = True
            node.mtime_ns = node.ctime_ns = self.clock
            self.say("FOLIO", node, folio * FOLIO, FOLIO)
        node.data[offset] = self._fresh()
        return True

    def clean(self, node: Node, start: int, end: int) -> None:
        """These bytes' folios are written out: the next store into each faults again."""
        node.writable = {folio for folio in node.writable if not start < (folio + 1) * FOLIO or folio * FOLIO >= end}

    def sync(self) -> None:
        """Everything is written out."""
        for node in self.nodes.values():
            node.writable.clear()

    def begin_append(self, node: Node, length: int) -> bool:
        """A write at the end of which the record comes first, and bytes and size later, outside any lock."""
        if node.kind is not Kind.FILE or node.late or len(node.data) + length > BIGGEST:
            return False
        node.late = (len(node.data), length)
        self.say("WRITE", node, len(node.data), length)
        return True

    def finish_append(self, node: Node) -> bool:
        """It takes effect; of this only the new size is told."""
        if node.late is None:
            return False
        (_, length), node.late = node.late, None
        node.data.extend(bytes([self._fresh()]) * length)
        node.mtime_ns = node.ctime_ns = self.clock
        self.say("SIZE", node, len(node.data))
        return True

    def settle(self) -> None:
        """Every append takes effect."""
        for node in list(self.nodes.values()):
            self.finish_append(node)

    def attribute(self, node: Node) -> bool:
        if self.rng.random() < 0.5:
            node.mode = 0o600 + self._fresh() % 64
        else:
            node.xattrs[b"security.capability" if self.rng.random() < 0.5 else b"user.x"] = b"%d" % self._fresh()
        self._changed(node)
        self.look(None, node)
        return True

    def utimes(self, node: Node) -> bool:
        node.mtime_ns = 5_000_000 + self._fresh() * 7
        self._changed(node)
        self.say("ATTR", node)
        return True

    def open(self, node: Node) -> bool:
        node.opens += 1
        return node.kind is Kind.FILE

    def close(self, node: Node) -> bool:
        if not node.opens:
            return False
        node.opens -= 1
        self._reap(node)
        return True

    # ---- inside

    def _fresh(self) -> int:
        self._value = self._value % 250 + 1
        return self._value

    def _make(self, kind: Kind) -> Node:
        if self._free:
            number = self._free.pop()
        else:
            number = self._next
            self._next += 1
        self._generation += self.generation_step
        node = Node(FileId(0, 0, number, self._generation), kind, mtime_ns=self.clock, ctime_ns=self.clock)
        self.nodes[node.id] = node
        return node

    def _attach(self, parent: Node, name: bytes, node: Node) -> None:
        parent.names[name] = node
        node.nlink += 1
        if node.kind is Kind.DIRECTORY:
            node.parent = parent

    def _detach(self, parent: Node, name: bytes, moving: bool = False) -> None:
        node = parent.names.pop(name)
        node.nlink -= 1
        if node.kind is Kind.DIRECTORY:
            node.parent = None
        if not moving:
            self._left(node)

    def _left(self, node: Node) -> None:
        """Names went away: whatever is not in the tree now has not stayed in it."""
        present = self.included()
        for each in (node, *self.walk(node)):
            if each not in present:
                each.stayed = False

    def _reap(self, node: Node) -> None:
        if node.nlink == 0 and node.opens == 0 and node.id in self.nodes:
            del self.nodes[node.id]
            self._free.append(node.id.ino)

    def _within(self, node: Node, ancestor: Node) -> bool:
        here: Node | None = node
        while here is not None:
            if here is ancestor:
                return True
            here = here.parent
        return False

    def _touch(self, directory: Node) -> None:
        directory.mtime_ns = directory.ctime_ns = self.clock

    def _changed(self, node: Node) -> None:
        node.ctime_ns = self.clock

    def _wrote(self, node: Node) -> None:
        self.finish_append(node)
        node.mtime_ns = node.ctime_ns = self.clock


_FILE_ID = re.compile(r"FileId\(fs=0, root=0, ino=(\d+), gen=(\d+)\)")

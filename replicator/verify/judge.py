"""The receiver's half of a comparison: what the replica has, against what the sender says that the source has.

Takes the items of a question, which come from a peer that is not trusted (see item.py for their form); gives a finding
for each. Inodes are found and judged in the receiver's loop, some a turn; what may wait for the disk (content,
listings) is read in a worker thread through descriptors, while epochs go on being applied. What they change in between
is not what was asked about: the sender knows what it has changed, and does not believe such a finding.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import Any

from replicator import blocks
from replicator.errors import RemoteError
from replicator.link import strict
from replicator.mirror.inspection import Look, look
from replicator.mirror.mirror import Mirror
from replicator.model import FileId, Kind
from replicator.verify.digests import xattrs_digest
from replicator.work import Worker

AT_ONCE = 32
"""Items, and so open files, that are under way at once."""
NAMES = 2000
"""Names that are judged in one turn of the loop."""
EXTRAS = 1000
"""Names beneath a directory that only the replica has, of which each is told."""
QUESTIONS = 16
"""That may be unanswered: an honest sender has fewer."""

_ITEM = frozenset({"id", "is", "names", "from", "to", "blocks"})
_IS = frozenset({"kind", "size", "mode", "uid", "gid", "mtime", "rdev", "target", "xattrs", "labelled"})


class Judge:
    """Of one replica."""

    def __init__(self, mirror: Mirror, worker: Worker) -> None:
        self._mirror = mirror
        self._worker = worker
        self._open = 0
        self._names = Listing()
        self._closed = False

    def close(self) -> None:
        """Nobody waits for answers any more."""
        self._closed = True

    def compare(self, items: Any, reply: Callable[[dict[str, Any]], None]) -> None:
        """Answer with {"found": [a finding for each item]}, later. RemoteError if the question makes no sense."""
        todo = [_Item(item) for item in strict.array(items, "items")]
        if self._open >= QUESTIONS:
            raise RemoteError("the peer asked for more comparisons than it waits for")
        self._open += 1
        self._go_on(todo, 0, reply)

    def _go_on(self, items: list[_Item], done: int, reply: Callable[[dict[str, Any]], None]) -> None:
        if self._closed:
            return
        if done == len(items):
            self._open -= 1
            reply({"found": [item.finding for item in items]})
            return
        some: list[_Item] = []
        names = 0
        for item in items[done : done + AT_ONCE]:
            if some and names + len(item.names or ()) > NAMES:
                break
            names += len(item.names or ())
            some.append(item)
            item.guarded(item.open, self._mirror)

        def read(_: object) -> None:
            for item in some:
                item.guarded(item.judge_names, self._mirror)
            self._go_on(items, done + len(some), reply)

        self._worker.submit(partial(_read_all, some, self._names), read)


class Listing:
    """The names in the directory that was listed last: one that comes in many items is listed once."""

    def __init__(self) -> None:
        self._id: FileId | None = None
        self._names: list[bytes] = []

    def between(self, fd: int, id: FileId, first: bytes, end: bytes | None) -> list[bytes]:
        """The names in [first, end), sorted; all of them again if `first` is the very first. OSError."""
        if id != self._id or not first:
            self._id = None
            self._names = sorted(map(os.fsencode, os.listdir(fd)))
            self._id = id
        return self._names[bisect_left(self._names, first) : None if end is None else bisect_left(self._names, end)]


class _Item:
    """One item, and what is found of it."""

    def __init__(self, value: Any) -> None:
        tree = strict.whole_object(value, _ITEM, "something to compare")
        self.id = strict.file_id(tree.get("id"))
        self.finding: dict[str, Any] = {}
        self.names: dict[str, str] | None = None
        self._wanted: dict[str, Any] | None = None
        self._span = blocks.read_span(tree["blocks"]) if "blocks" in tree else None
        if "is" in tree:
            self._wanted = strict.whole_object(tree["is"], _IS, "attributes")
        if "names" in tree:
            names = tree["names"]
            if not isinstance(names, dict):
                strict.bad("names and what they mean", names)
            self.names = names
        self._from = strict.raw(tree["from"], "a name", strict.NAME_MAX) if "from" in tree else b""
        self._to = strict.raw(tree["to"], "a name", strict.NAME_MAX) if "to" in tree else None
        self._fd = -1
        self._listing: list[Look] = []

    def guarded(self, act: Callable[..., None], *of: Mirror | Listing) -> None:
        """Do something; what goes wrong is the finding."""
        if "missing" in self.finding or "error" in self.finding:
            return
        try:
            act(*of)
        except (FileNotFoundError, KeyError):
            self.finding["missing"] = True
        except OSError as error:
            self.finding["error"] = f"the replica's cannot be read: {error.strerror}"

    def open(self, mirror: Mirror) -> None:
        """In the loop: find it, and judge its attributes."""
        if self._wanted is not None:
            kinds = self._judge_attributes(mirror, self._wanted)
            if kinds:
                self.finding["kinds"] = kinds
            if "kind" in kinds:
                return  # what is in it is of another kind, too
        if self._span is not None:
            self._fd = mirror.inspection.open_content(self.id)
        elif self.names is not None:
            self._fd = mirror.inspection.open_directory(self.id)

    def read(self, names: Listing) -> None:
        """In a thread: read what may wait."""
        if self._fd < 0:
            return
        try:
            if self._span is None:
                wanted = names.between(self._fd, self.id, self._from, self._to)
                self._listing = look(self._fd, wanted)
                return
            verdict = blocks.judge(self._fd, self._span)
            self.finding["to"] = verdict.to
            if verdict.differ:
                self.finding["differ"] = [number for extent in verdict.differ for number in extent]
        finally:
            os.close(self._fd)

    def judge_names(self, mirror: Mirror) -> None:
        """In the loop: what the names mean."""
        if self._fd < 0 or self.names is None:
            return
        replica = mirror.inspection
        there = {seen.name.decode("latin-1"): seen for seen in self._listing if not replica.is_own(self.id, seen.name)}
        found: list[tuple[list[str], str]] = []
        for name in sorted(self.names.keys() | there.keys()):
            seen = there.get(name)
            if seen is None:
                found.append(([name], "missing"))
            elif name not in self.names:
                found.append(([name], "name only on the replica"))
                if seen.kind is Kind.DIRECTORY and mirror.by_handle(seen.handle) is None:
                    for path in replica.beneath(self.id, seen.name, EXTRAS):
                        parts = [part.decode("latin-1") for part in path]
                        found.append(([name, *parts], "name only on the replica"))
            elif _text(mirror.by_handle(seen.handle)) != self.names[name]:
                found.append(([name], "name of another file"))
        if found:
            self.finding["names"] = found

    def _judge_attributes(self, mirror: Mirror, wanted: dict[str, Any]) -> list[str]:
        kind, size, have = mirror.inspection.attributes(self.id)
        mine: dict[str, Any] = {
            "kind": str(kind),
            "size": size,
            "mode": have.mode,
            "uid": have.uid,
            "gid": have.gid,
            "mtime": have.mtime_ns,
            "rdev": have.rdev,
            "target": have.target.decode("latin-1"),
            "xattrs": xattrs_digest(have.xattrs, labelled=bool(wanted.get("labelled"))),
        }
        return [name for name, value in mine.items() if wanted.get(name) != value]


def _read_all(items: list[_Item], names: Listing) -> None:
    for item in items:
        item.guarded(item.read, names)


def _text(id: FileId | None) -> str | None:
    return None if id is None else id.text()

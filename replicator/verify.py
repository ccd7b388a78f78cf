"""`verify`: compares source and replica while both are in use.

A batch of inodes is judged like this: a barrier; then they are watched for changes and read; then the channels are
drained again. What was not touched meanwhile was read as it stood at the barrier, so the check travels in the stream
behind everything that made it so, and the receiver compares between epochs. What was touched is tried again, and called
unsettled after some tries. A difference in what was not touched is a fault of this program or a foreign change.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xxhash

from replicator import syscalls
from replicator.link import inquiry, strict
from replicator.model import FileId, Kind, Slot, kind_of, replicated_xattr
from replicator.observe.control import Caller
from replicator.tree.handles import SourceRoot, Stale

if TYPE_CHECKING:
    from replicator.mirror.mirror import Mirror
    from replicator.sender import Sender

BATCH_FILES = 256
BATCH_BYTES = 64 << 20
TRIES = 5
CHUNK = 1 << 20

Item = dict[str, Any]


def xattrs_digest(xattrs: dict[bytes, bytes]) -> str:
    """One hash of all extended attributes that are replicated."""
    digest = xxhash.xxh3_128()
    for name, value in sorted(item for item in xattrs.items() if replicated_xattr(item[0])):
        digest.update(b"%d %d " % (len(name), len(value)) + name + value)
    return digest.hexdigest()


def names_digest(names: Iterable[tuple[bytes, FileId | None]]) -> str:
    """One hash of a directory's names and what they mean; both sides make the same of the same."""
    digest = xxhash.xxh3_128()
    for name, id in sorted(names):
        digest.update(name + b"/" + (b"" if id is None else id.text().encode()) + b"/")
    return digest.hexdigest()


def describe(source: SourceRoot, id: FileId) -> Item | None:
    """One inode of the source as `compare` takes it; None if it is gone. Reads all of it. OSError."""
    try:
        fd = source.open_to_read(id)
    except Stale:
        return None
    try:
        status = os.fstat(fd)
        kind = kind_of(status.st_mode)
        digest = xxhash.xxh3_128()
        if kind is Kind.FILE:
            while data := os.read(fd, CHUNK):
                digest.update(data)
        device = kind in (Kind.CHARACTER, Kind.BLOCK)
        return {
            "id": id.text(),
            "kind": str(kind),
            "size": status.st_size if kind is Kind.FILE else 0,
            "mode": status.st_mode & 0o7777,
            "uid": status.st_uid,
            "gid": status.st_gid,
            "mtime": status.st_mtime_ns,
            "rdev": status.st_rdev if device else 0,
            "target": os.readlink(b"", dir_fd=fd).decode("latin-1") if kind is Kind.SYMLINK else "",
            "xattrs": xattrs_digest(syscalls.get_xattrs(fd)),
            "content": digest.hexdigest() if kind is Kind.FILE else "",
        }
    finally:
        os.close(fd)


def compare(mirror: Mirror, items: list[Item]) -> list[dict[str, str]]:
    """The differences of the replica from `items`: {"id", "kind"}; for names also {"name"}."""
    differences = []
    for item in items:
        id = strict.file_id(item["id"])
        try:
            have = mirror.digest(id)
        except (OSError, KeyError):
            differences.append({"id": item["id"], "kind": "missing"})
            continue
        mine = {
            "kind": str(have.kind),
            "size": have.size,
            "mode": have.attributes.mode,
            "uid": have.attributes.uid,
            "gid": have.attributes.gid,
            "mtime": have.attributes.mtime_ns,
            "rdev": have.attributes.rdev,
            "target": have.attributes.target.decode("latin-1"),
            "xattrs": xattrs_digest(dict(have.attributes.xattrs)),
            "content": have.content,
        }
        differences += [{"id": item["id"], "kind": key} for key, value in mine.items() if item[key] != value]
        if have.kind is Kind.DIRECTORY and "names" in item:
            differences += _compare_names(mirror, id, dict(item["names"]))
    return differences


def _compare_names(mirror: Mirror, directory: FileId, wanted: dict[str, str]) -> list[dict[str, str]]:
    there = {entry.name.decode("latin-1"): entry.id for entry in mirror.list_directory(directory)}
    found = []
    for name in sorted(wanted.keys() | there.keys()):
        id = there.get(name)
        if name not in there:
            kind = "name missing"
        elif name not in wanted:
            kind = "name only on the replica"
        elif id is None or id.text() != wanted[name]:
            kind = "name of another file"
        else:
            continue
        found.append({"id": directory.text(), "kind": kind, "name": name})
    return found


@dataclass(slots=True)
class _Candidate:
    id: FileId
    tries: int = 0


class Verification:
    """One run, driven by the sender's loop; answers its caller line by line. There may be one at a time."""

    def __init__(self, sender: Sender, caller: Caller, over: Callable[[], None]) -> None:
        """`over` is called once, when the last has been answered."""
        self._sender = sender
        self._caller = caller
        self._over = over
        self._todo: deque[_Candidate] = deque()
        self._files = self._bytes = self._different = self._unsettled = 0

    def start(self) -> None:
        """Begin."""
        index = self._sender.index
        self._todo.extend(_Candidate(id) for id in index.subtree(index.root))
        self._next()

    def _finish(self, answer: Item) -> None:
        self._caller.answer(answer)
        self._over()

    def _next(self) -> None:
        if self._caller.gone:
            self._over()
            return
        batch = [self._todo.popleft() for _ in range(min(BATCH_FILES, len(self._todo)))]
        if not batch:
            self._finish(
                {
                    "identical": self._different == 0,
                    "different": self._different,
                    "unsettled": self._unsettled,
                    "files": self._files,
                    "bytes": self._bytes,
                }
            )
            return
        self._barrier(lambda: self._read(batch))

    def _barrier(self, passed: Any) -> None:
        sender = self._sender
        sender.barriers.add(sender.sensor.produced(), sender.turn, passed)

    def _read(self, batch: list[_Candidate]) -> None:
        sender = self._sender
        sender.intake.fence()  # so that whatever is written from here on is told
        sender.table.watched = {candidate.id for candidate in batch}
        source, ids = sender.source, [candidate.id for candidate in batch if sender.index.is_member(candidate.id)]

        def job() -> list[Item]:
            return [item for id in ids if (item := describe(source, id)) is not None]

        sender.worker.submit(job, lambda items: self._drained(batch, items))

    def _drained(self, batch: list[_Candidate], items: list[Item] | Exception) -> None:
        if isinstance(items, Exception):
            self._finish({"error": f"cannot read the source: {items}"})
            return
        self._barrier(lambda: self._check(batch, items))

    def _check(self, batch: list[_Candidate], items: list[Item]) -> None:
        sender = self._sender
        clean = []
        by_id = {item["id"]: item for item in items}
        for candidate in batch:
            item = by_id.get(candidate.id.text())
            if candidate.id in sender.table.watched and item is not None:
                if item["kind"] == Kind.DIRECTORY:
                    children = sender.index.children(candidate.id).items()
                    item["names"] = {name.decode("latin-1"): id.text() for name, id in children}
                clean.append(item)
            elif sender.index.is_member(candidate.id):
                candidate.tries += 1
                if candidate.tries < TRIES:
                    self._todo.append(candidate)
                else:
                    self._unsettled += 1
        self._files += len(clean)
        self._bytes += sum(item["size"] for item in clean)
        sender.ask({"op": "compare", "items": clean}, self._compared)

    def _compared(self, body: dict[str, Any]) -> None:
        refusal = inquiry.refusal(body)
        if refusal is not None:
            self._finish({"error": refusal})
            return
        differences = inquiry.differences(body)
        self._different += len(differences)
        self._sender.metrics.verify_differences.add(len(differences))
        for id, kind, name in differences:
            path = self._sender.describe(id if name is None else Slot(id, name))
            self._caller.answer({"kind": kind, "path": path}, done=False)
        self._next()

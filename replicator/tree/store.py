"""The index on disk: what the replica durably has, in an embedded database.

Takes what became durable (`Told`), in order; gives who is where, and for each inode the stamp that it had when the
replica got it. One process uses a store at a time. `commit` may run in another thread than the rest. About 130 bytes a
file. Raises sqlite3.Error when the state directory fails; nothing is half committed then.

Does not promise to be as new as the replica: after a crash it says what was durable at some earlier moment. Whoever
finds a difference must therefore tell the replica what is, not what changed since.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np

from replicator.model import WIDE, FileId, Kind, Slot
from replicator.tree.stamps import PAGE, STAMP, Stamp, Stamps, cleared, is_there, place_of, size_in, stamped

log = logging.getLogger(__name__)

VERSION: Final = "1"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS names (
    parent BLOB NOT NULL, name BLOB NOT NULL, id BLOB NOT NULL, kind INTEGER NOT NULL, PRIMARY KEY (parent, name)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS names_id ON names (id, kind);
CREATE TABLE IF NOT EXISTS nameless (id BLOB PRIMARY KEY, kind INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS adrift (id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stamps (
    root INTEGER NOT NULL, page INTEGER NOT NULL, rows BLOB NOT NULL, PRIMARY KEY (root, page)
) WITHOUT ROWID;
"""
_KINDS: Final = tuple(Kind)
_NUMBERS: Final = {kind: number for number, kind in enumerate(_KINDS)}
_PAGES: Final = 64
"""Of stamps that are read at once."""
_AHEAD: Final = 1 << 20
"""Bytes that the disk is asked for at a time."""
_CACHE: Final = "PRAGMA cache_size=-8192"  # KiB

Entry = tuple[FileId, Kind]


def key_of(id: FileId) -> bytes:
    """An id as a key: short, and in the order of inode numbers as long as these have the same length."""
    ino = id.ino.to_bytes((id.ino.bit_length() + 7) // 8, "big")
    root = id.root.to_bytes((id.root.bit_length() + 7) // 8, "big")
    return bytes((len(ino) << 4 | len(root),)) + ino + root + id.gen.to_bytes(4, "big")


def id_of(key: bytes) -> FileId:
    """Read `key_of` back."""
    number, ino, root = int.from_bytes(key, "big"), (key[0] >> 4) * 8, (key[0] & 15) * 8
    return FileId(0, number >> 32 & (1 << root) - 1, number >> 32 + root & (1 << ino) - 1, number & 0xFFFFFFFF)


def wide(keys: Sequence[bytes]) -> bytes:
    """The wide forms of the ids of many keys, one after the other."""
    rows = np.zeros((len(keys), WIDE), np.uint8)
    heads = np.fromiter((key[0] for key in keys), np.uint8, len(keys))
    for head in np.unique(heads).tolist():  # those of one length
        (at,) = np.nonzero(heads == head)
        ino, root = 1 + (head >> 4), head & 15
        group = np.frombuffer(b"".join([keys[place] for place in at.tolist()]), np.uint8).reshape(len(at), -1)
        rows[at, 16 - root : 16] = group[:, ino : ino + root]
        rows[at, 25 - ino : 24] = group[:, 1:ino]
        rows[at, 28:] = group[:, -4:]
    return rows.tobytes()


@dataclass(slots=True)
class Told:
    """What the replica has been told in one epoch, and has durably."""

    slots: dict[Slot, Entry | None] = field(default_factory=dict)
    stamps: dict[FileId, Stamp | None] = field(default_factory=dict)
    """None: none can vouch for it any more; it passes for changed when it is compared."""
    dead: list[FileId] = field(default_factory=list)
    """After the slots."""

    def __bool__(self) -> bool:
        return bool(self.slots or self.stamps or self.dead)


@dataclass(frozen=True, slots=True)
class Committed:
    """What has become of a store."""

    told: Sequence[Told]
    displaced: list[FileId]
    """Whose names were taken."""
    holders: dict[Slot, FileId | None]
    """What is now in each slot that was told of, or has changed."""


class IndexStore:
    """One sender's index file."""

    def __init__(self, path: Path) -> None:
        """Open or make it. A damaged one, or one of another version, is made anew, which costs a comparison."""
        self.path = path
        self._lock = threading.Lock()
        self._root = b""
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            log.warning("the index %s is damaged (%s): starting a new one", path, error)
            self._remove()
            self._open()
        if self.meta("version") != VERSION:
            if self.meta("version") is not None:
                log.warning("the index %s is of another version of rsyncfs: starting a new one", path)
                self.clear()
            self.set_meta({"version": VERSION})
        self._preloaded: dict[int, Stamps] = {}
        self._nameless = {bytes(key) for (key,) in self._reader.execute("SELECT id FROM nameless")}
        self.count = int(self.meta("count") or 0)
        """How many inodes it knows, the source's root not counted."""

    def _open(self) -> None:
        self._reader = self._connect()
        try:
            self._writer = self._connect()
            self._writer.executescript(_SCHEMA)
        except sqlite3.Error:
            self._reader.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, cached_statements=64)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(_CACHE)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self._beside(suffix).unlink(missing_ok=True)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def close(self) -> None:
        """Give the file back."""
        self._reader.close()
        self._writer.close()

    def clear(self) -> None:
        """Forget everything but the version."""
        with self._lock, self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            self._preloaded.clear()
            for table in ("meta", "names", "nameless", "adrift", "stamps"):
                self._writer.execute(f"DELETE FROM {table}")  # noqa: S608 - of the line above
            self._put_meta({"version": VERSION})
        self._nameless, self.count = set(), 0

    # ------------------------------------------------------------------ meta

    def meta(self, key: str) -> str | None:
        """A stored value."""
        row = self._reader.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, values: Mapping[str, str]) -> None:
        """Store values, together, safe from a power cut when it returns."""
        with self._lock:
            self._writer.execute("PRAGMA synchronous=FULL")
            try:
                with self._writer:
                    self._writer.execute("BEGIN IMMEDIATE")
                    self._put_meta(values)
            finally:
                self._writer.execute("PRAGMA synchronous=NORMAL")

    def _put_meta(self, values: Mapping[str, str]) -> None:
        self._writer.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    # ------------------------------------------------------------------ names

    def get(self, slot: Slot) -> FileId | None:
        """Who is in the slot."""
        row = self._reader.execute(
            "SELECT id FROM names WHERE parent = ? AND name = ?", (key_of(slot.parent), slot.name)
        ).fetchone()
        return None if row is None else id_of(row[0])

    def entries(self, directory: FileId) -> list[tuple[bytes, bytes]]:
        """Everything in a directory, by name, with the keys of the ids."""
        rows = self._reader.execute("SELECT name, id FROM names WHERE parent = ? ORDER BY name", (key_of(directory),))
        return rows.fetchall()

    def listing(self, directory: FileId) -> list[tuple[bytes, FileId, bool, bool]]:
        """(name, id, whether it is a directory, whether it has other names too) of everything in a directory."""
        rows = self._reader.execute(
            "SELECT name, id, kind, (SELECT count(*) FROM names AS other WHERE other.id = names.id) FROM names"
            " WHERE parent = ? ORDER BY name",
            (key_of(directory),),
        )
        number = _NUMBERS[Kind.DIRECTORY]
        return [(name, id_of(key), kind == number, places > 1) for name, key, kind, places in rows.fetchall()]

    def places(self, id: FileId) -> tuple[Kind, list[Slot]] | None:
        """An inode's kind and names; None if it has no name here."""
        rows = self._reader.execute("SELECT parent, name, kind FROM names WHERE id = ?", (key_of(id),)).fetchall()
        if not rows:
            return None
        return _KINDS[rows[0][2]], [Slot(id_of(parent), name) for parent, name, _ in rows]

    def nameless(self) -> list[Entry]:
        """Inodes that have lost their last name and have not been told dead."""
        return [(id_of(key), _KINDS[kind]) for key, kind in self._reader.execute("SELECT id, kind FROM nameless")]

    def ids(self, after: bytes, most: int, *, directories: bool) -> tuple[list[FileId], bytes]:
        """Up to `most` inodes that have a name, from behind `after` on, and what to go on with; b"" begins and ends."""
        rows = self._reader.execute(
            "SELECT DISTINCT id FROM names WHERE id > ? AND (kind = ?) = ? ORDER BY id LIMIT ?",
            (after, _NUMBERS[Kind.DIRECTORY], directories, most),
        ).fetchall()
        return [id_of(key) for (key,) in rows], rows[-1][0] if len(rows) == most else b""

    def settle(self, root: FileId) -> None:
        """To be called before anything else, with the source's root.

        Forgets names in directories that have none themselves: told before the directory's, and then the process died.
        They will be found, if they are there. Who has no other name is nameless from here on.
        """
        self._root = key_of(root)
        with self._lock, self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            change = _Change(self._writer, self._root, self._nameless, self.count)
            change.sink()
            change.finish()
        self._nameless = change.nameless

    # ------------------------------------------------------------------ stamps

    def size(self, id: FileId) -> int | None:
        """The size that the replica's file durably had, in bytes; None if it is not known."""
        root, page, _ = place_of(id)
        row = self._reader.execute("SELECT rows FROM stamps WHERE root = ? AND page = ?", (root, page)).fetchone()
        return None if row is None else size_in(row[0], id)

    def roots(self) -> list[int]:
        """The filesystem roots (on btrfs; elsewhere 0) of which there are stamps."""
        return [int(root) for (root,) in self._reader.execute("SELECT DISTINCT root FROM stamps")]

    def _room(self) -> int:
        """No fewer pages of stamps than whoever has begun to read before can find."""
        sizes = (place.stat().st_size for place in (self.path, self._beside("-wal")) if place.exists())
        return sum(sizes) // (PAGE * STAMP.itemsize) + 1

    def preload(self) -> None:
        """Read all stamps, for `stamps` to give: each once, unless they change before. Have the disk begin with the
        rest: whatever differs will be looked up."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for at in range(0, os.fstat(fd).st_size, _AHEAD):
                os.posix_fadvise(fd, at, _AHEAD, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(fd)
        with self._lock:
            self._preloaded = {root: self._read_stamps(root) for root in self.roots()}

    def stamps(self, root: int) -> Stamps:
        """All stamps of a root."""
        with self._lock:
            return self._preloaded.pop(root, None) or self._read_stamps(root)

    def _read_stamps(self, root: int) -> Stamps:
        db = self._connect()  # one look at one moment, also from another thread
        try:
            db.execute("BEGIN")
            found = db.execute("SELECT page, rows FROM stamps WHERE root = ? ORDER BY page", (root,))
            some = found.fetchmany(_PAGES)
            stamps = Stamps(root, self._room())  # to count them takes as long as to read half of them
            while some:
                stamps.add([page for page, _ in some], [blob for _, blob in some])
                some = found.fetchmany(_PAGES)
            return stamps
        finally:
            db.close()

    # ------------------------------------------------------------------ what became durable

    def commit(self, told: Sequence[Told], meta: Mapping[str, str]) -> Committed:
        """Take over what became durable, in order, with `meta`, in one transaction."""
        with self._lock:
            self._preloaded.clear()
            change = _Change(self._writer, self._root, self._nameless, self.count)
            with self._writer:
                self._writer.execute("BEGIN IMMEDIATE")
                for one in told:
                    change.take(one)
                change.finish()
                self._put_meta({**meta, "count": str(change.count)})
            self._nameless, self.count = change.nameless, change.count
            return Committed(tuple(told), [id_of(key) for key in change.displaced], change.holders)


class _Change:
    """One transaction."""

    def __init__(self, db: sqlite3.Connection, root: bytes, nameless: set[bytes], count: int) -> None:
        self._db = db
        self._root = root
        self._adrift = {bytes(key) for (key,) in db.execute("SELECT id FROM adrift")}
        self.nameless = set(nameless)
        self.count = count
        self.displaced: dict[bytes, None] = {}
        self.holders: dict[Slot, FileId | None] = {}
        self._loose: dict[bytes, int] = {}
        """Who has lost a name: key and kind."""
        self._sure: set[bytes] = set()
        """Who has a name for certain."""
        self._stamps: dict[FileId, Stamp | None] = {}
        self._named: dict[FileId, None] = {}
        self._buried: dict[FileId, None] = {}

    def take(self, told: Told) -> None:
        for slot, entry in told.slots.items():
            self._slot(slot, entry)
        for id, stamp in told.stamps.items():
            self._stamps[id] = stamp
            self._buried.pop(id, None)
        for id in told.dead:
            self._dead(id)

    def _slot(self, slot: Slot, entry: Entry | None) -> None:
        execute, parent = self._db.execute, key_of(slot.parent)
        row = execute("SELECT id, kind FROM names WHERE parent = ? AND name = ?", (parent, slot.name)).fetchone()
        self.holders[slot] = None if entry is None else entry[0]
        if entry is None:
            if row is not None:
                execute("DELETE FROM names WHERE parent = ? AND name = ?", (parent, slot.name))
                self._lose(*row)
            return
        id, kind = entry
        key, number = key_of(id), _NUMBERS[kind]
        if row is not None and row[0] == key:
            return
        if row is not None:
            self._lose(*row)
        if not self._known(key):
            self.count += 1
        if kind is Kind.DIRECTORY:  # it has one name
            self._delete("id", key)
        execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?)", (parent, slot.name, key, number))
        self._sure.add(key)
        if key in self.nameless:
            execute("DELETE FROM nameless WHERE id = ?", (key,))
            self.nameless.discard(key)
        self._named[id] = None
        self._buried.pop(id, None)
        if parent != self._root and parent not in self._adrift and not self._known(parent):
            execute("INSERT INTO adrift VALUES (?)", (parent,))
            self._adrift.add(parent)
        self._ashore(key)

    def _ashore(self, key: bytes) -> None:
        if key in self._adrift:
            self._db.execute("DELETE FROM adrift WHERE id = ?", (key,))
            self._adrift.discard(key)

    def _lose(self, key: bytes, kind: int) -> None:
        self._loose[key] = kind
        self._sure.discard(key)
        self.displaced[key] = None

    def _known(self, key: bytes) -> bool:
        """Whether it has a name, or had one and is not dead."""
        if key in self.nameless or key in self._loose or key in self._sure:
            return True
        if self._db.execute("SELECT 1 FROM names WHERE id = ?", (key,)).fetchone() is None:
            return False
        self._sure.add(key)
        return True

    def _dead(self, id: FileId) -> None:
        execute, key = self._db.execute, key_of(id)
        if self._known(key):
            self.count -= 1
        self._delete("id", key)
        self._loose.update(self._delete("parent", key))
        self._ashore(key)
        if key in self.nameless:
            execute("DELETE FROM nameless WHERE id = ?", (key,))
            self.nameless.discard(key)
        self._loose.pop(key, None)
        self._stamps.pop(id, None)
        self._named.pop(id, None)
        self._buried[id] = None

    def _delete(self, column: Literal["id", "parent"], key: bytes) -> list[tuple[bytes, int]]:
        """The names of an inode, or those in a directory; gives who was there: keys and kinds."""
        where = f"FROM names WHERE {column} = ?"
        rows = self._db.execute(f"SELECT parent, name, id, kind {where}", (key,)).fetchall()
        if rows:
            self._db.execute(f"DELETE {where}", (key,))
            self._sure.difference_update(id for _, _, id, _ in rows)
        self.holders.update((Slot(id_of(parent), name), None) for parent, name, _, _ in rows)
        return [(id, kind) for _, _, id, kind in rows]

    def sink(self) -> None:
        """Forget what is in directories without a name."""
        for key in list(self._adrift):
            self._loose.update(self._delete("parent", key))
            self._ashore(key)

    def finish(self) -> None:
        for key, kind in self._loose.items():
            if self._db.execute("SELECT 1 FROM names WHERE id = ?", (key,)).fetchone() is None:
                self._db.execute("INSERT OR REPLACE INTO nameless VALUES (?, ?)", (key, kind))
                self.nameless.add(key)
        pages: dict[tuple[int, int], list[FileId]] = {}
        for id in {**self._buried, **self._named, **self._stamps}:
            pages.setdefault(place_of(id)[:2], []).append(id)
        for (root, page), ids in sorted(pages.items()):
            row = self._db.execute("SELECT rows FROM stamps WHERE root = ? AND page = ?", (root, page)).fetchone()
            rows = np.zeros(PAGE, STAMP) if row is None else np.frombuffer(row[0], STAMP).copy()
            for id in ids:
                if id in self._buried:
                    cleared(rows, id)
                elif id in self._stamps:
                    stamped(rows, id, self._stamps[id])
                elif not is_there(rows, id):  # a member without a stamp would not be missed
                    stamped(rows, id, None)
            self._db.execute("INSERT OR REPLACE INTO stamps VALUES (?, ?, ?)", (root, page, rows.tobytes()))

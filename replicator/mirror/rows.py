"""How the inventory's rows lie in sqlite, and the changed ones that wait in memory.

Plain conversions and one bag of dictionaries; nothing here decides anything.
"""

from __future__ import annotations

import sqlite3

from replicator.mirror.steps import Record
from replicator.model import FileId, Kind, Slot

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inodes (
    id BLOB PRIMARY KEY, handle BLOB NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL,
    mtime TEXT NOT NULL, ctime TEXT, complete INTEGER NOT NULL, suspect INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS inodes_handle ON inodes (handle);
CREATE TABLE IF NOT EXISTS slots (
    parent BLOB NOT NULL, name BLOB NOT NULL, id BLOB NOT NULL, PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS slots_id ON slots (id);
"""

Entry = tuple[Record, bytes]
"""What is known of an inode, and the replica's own file handle of it."""


def key_of(id: FileId) -> bytes:
    """An id as a key column."""
    return id.wide()


def id_of(key: bytes) -> FileId:
    """The id in a key column."""
    return FileId.of_wide(key)


class Layer:
    """Changed rows; None stands for a deleted one. `times` are modification times to set once the data is synced,
    `written` the files whose bytes are to be synced."""

    def __init__(self) -> None:
        self.inodes: dict[FileId, Entry | None] = {}
        self.bound: dict[Slot, FileId | None] = {}
        self.places: dict[FileId, tuple[Slot, ...]] = {}
        self.names: dict[FileId, set[bytes]] = {}
        self.handles: dict[bytes, FileId | None] = {}
        self.times: dict[FileId, int] = {}
        self.written: set[FileId] = set()

    def update(self, later: Layer) -> None:
        """Lay `later` over it."""
        self.inodes.update(later.inodes)
        self.bound.update(later.bound)
        self.places.update(later.places)
        for parent, names in later.names.items():
            self.names.setdefault(parent, set()).update(names)
        self.handles.update(later.handles)
        self.times.update(later.times)
        self.written.update(later.written)


def entry_of(row: tuple[str, int, str, str | None, int, int, bytes]) -> Entry:
    """What a row of kind, size, mtime, ctime, complete, suspect, handle says."""
    kind, size, mtime, ctime, complete, suspect, handle = row
    changed = None if ctime is None else int(ctime)
    return Record(Kind(kind), size, int(mtime), changed, bool(complete), bool(suspect)), handle


class Transaction:
    """BEGIN ... COMMIT, or ROLLBACK on any exception."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if kind is None:
            self._db.execute("COMMIT")
        else:
            self._db.execute("ROLLBACK")


def row_of(id: FileId, record: Record, handle: bytes) -> tuple[object, ...]:
    """A row of the table `inodes`."""
    ctime = None if record.ctime_ns is None else str(record.ctime_ns)
    flags = (int(record.complete), int(record.suspect))
    return (key_of(id), handle, record.kind.value, record.size, str(record.mtime_ns), ctime, *flags)

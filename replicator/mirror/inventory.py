"""The replica's own memory: which inode of the replica is which of the source, and what names it has. A View.

Rows of durable epochs lie in sqlite (WAL, synced at each commit); rows of later ones in two layers in memory: the one
being made durable ("frozen") and the one that grows. A crash forgets the layers; the intent log and a look at the disk
restore what they said. Not for several threads, but `write` may be called in another one, since it waits for the disk.
Raises sqlite3.Error when the state directory fails.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from replicator.mirror.records import lost
from replicator.mirror.rows import SCHEMA, Entry, Layer, Transaction, entry_of, id_of, key_of, row_of
from replicator.mirror.steps import LIMBO, Exchange, Link, Naming, Record, Rename, Rmdir, Unlink
from replicator.model import FileId, Kind, Slot

_CACHED = 200_000
_AT_ONCE = 500
_FEW = 4
_Key = TypeVar("_Key", FileId, Slot)


class Inventory:
    """See the module. `root` is valid once `set_root` was called or a stored one was found."""

    def __init__(self, path: Path) -> None:
        self._db = _connected(path)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(SCHEMA)
        self._writer = _connected(path)
        """Of its own, so that who reads does not wait for it."""
        self._writing = threading.Lock()
        self._grow = Layer()
        self._frozen: Layer | None = None
        self._inodes: dict[FileId, Entry | None] = {}
        self._places: dict[FileId, tuple[Slot, ...]] = {}
        self._bound: dict[Slot, FileId | None] = {}
        # Who is in limbo is asked in every epoch.
        self._in_limbo = {
            name: id_of(key)
            for name, key in self._db.execute("SELECT name, id FROM slots WHERE parent = ?", (key_of(LIMBO),))
        }
        self._root = FileId(0, 0, 0, 0)
        self._root_handle = b""

    # -- meta

    def meta(self, key: str) -> str | None:
        """A stored value."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, **values: str) -> None:
        """Store values, durably and together."""
        with self._writing, Transaction(self._db):
            _put_meta(self._db, values)

    def set_root(self, id: FileId, handle: bytes) -> None:
        """The source's root is the replica's root directory."""
        self._root, self._root_handle = id, handle
        if self.record(id) is None:
            self.put(id, Record(Kind.DIRECTORY), handle)

    # -- the View

    @property
    def root(self) -> FileId:
        """See View."""
        return self._root

    def record(self, id: FileId) -> Record | None:
        """See View."""
        entry = self._entry(id)
        return None if entry is None else entry[0]

    def bound(self, place: Slot) -> FileId | None:
        """See View."""
        if place.parent == LIMBO:
            return self._in_limbo.get(place.name)
        for layer in self._layers():
            if place in layer.bound:
                return layer.bound[place]
        if place not in self._bound:
            row = self._db.execute(
                "SELECT id FROM slots WHERE parent = ? AND name = ?", (key_of(place.parent), place.name)
            ).fetchone()
            self._bound[place] = None if row is None else id_of(row[0])
        return self._bound[place]

    def places(self, id: FileId) -> Collection[Slot]:
        """See View."""
        return self._places_of(id)

    def children(self, directory: FileId) -> Iterable[tuple[bytes, FileId]]:
        """See View."""
        if directory == LIMBO:
            return list(self._in_limbo.items())
        return [(name, id_of(key)) for name, key in self.ids_in(directory).items()]

    # -- beyond the View

    def foresee(self, ids: Sequence[FileId], places: Sequence[Slot]) -> None:
        """These are going to be asked about: find out what is stored of them, of many at once."""
        layers = self._layers()
        new = [id for id in ids if id not in self._inodes and not any(id in layer.inodes for layer in layers)]
        for some in _portions(dict.fromkeys(new)):
            marks = ", ".join("?" * len(some))
            rows = self._db.execute(
                f"SELECT kind, size, mtime, ctime, complete, suspect, handle, id FROM inodes WHERE id IN ({marks})",  # noqa: S608
                [key_of(id) for id in some],
            )
            self._inodes.update(dict.fromkeys(some))
            self._inodes.update((id_of(row[7]), entry_of(row[:7])) for row in rows)
        missing: dict[FileId, list[Slot]] = {}
        for place in places:
            if place not in self._bound and place.parent != LIMBO:
                missing.setdefault(place.parent, []).append(place)
        for parent, slots in missing.items():
            for group in _portions(slots):
                found = self._db.execute(
                    f"SELECT name, id FROM slots WHERE parent = ? AND name IN ({', '.join('?' * len(group))})",  # noqa: S608
                    [key_of(parent), *(slot.name for slot in group)],
                )
                self._bound.update(dict.fromkeys(group))
                self._bound.update((Slot(parent, name), id_of(key)) for name, key in found)

    def ids_in(self, directory: FileId) -> dict[bytes, bytes]:
        """The names in a directory (not in limbo), with the wide forms of their ids."""
        changed: set[bytes] = set()
        for layer in self._layers():
            changed |= layer.names.get(directory, set())
        found = dict(self._db.execute("SELECT name, id FROM slots WHERE parent = ?", (key_of(directory),)).fetchall())
        for name in changed:
            id = self.bound(Slot(directory, name))
            if id is None:
                found.pop(name, None)
            else:
                found[name] = key_of(id)
        return found

    def handle(self, id: FileId) -> bytes:
        """The replica's own file handle of a known inode. KeyError if it is not known."""
        if id == self._root:
            return self._root_handle
        entry = self._entry(id)
        if entry is None:
            raise KeyError(id)
        return entry[1]

    def by_handle(self, handle: bytes) -> FileId | None:
        """Which inode of the source the replica's inode with this handle is."""
        if handle == self._root_handle:
            return self._root
        for layer in self._layers():
            if handle in layer.handles:
                return layer.handles[handle]
        row = self._db.execute("SELECT id FROM inodes WHERE handle = ?", (handle,)).fetchone()
        return None if row is None else id_of(row[0])

    def is_empty(self) -> bool:
        """No inode but the root is known."""
        if any(
            entry is not None and id != self._root for layer in self._layers() for id, entry in layer.inodes.items()
        ):
            return False
        return self._db.execute("SELECT 1 FROM inodes WHERE id != ? LIMIT 1", (key_of(self._root),)).fetchone() is None

    def entries(self, directory: FileId) -> dict[bytes, tuple[FileId, Record, bytes]]:
        """All names in a directory with what they mean, and the handles; only while no layer holds a name."""
        rows = self._db.execute(
            "SELECT slots.name, slots.id, kind, size, mtime, ctime, complete, suspect, handle"
            " FROM slots JOIN inodes ON inodes.id = slots.id WHERE parent = ?",
            (key_of(directory),),
        )
        return {row[0]: (id_of(row[1]), *entry_of(row[2:])) for row in rows}

    def parents(self) -> Iterator[FileId]:
        """Every directory that has a name in it; only while no layer holds a name."""
        return (id_of(row[0]) for row in self._db.execute("SELECT DISTINCT parent FROM slots"))

    def put(self, id: FileId, record: Record, handle: bytes | None = None) -> None:
        """Set what is known of an inode; its handle too if given."""
        entry = self._entry(id)
        if handle is None:
            handle = self.handle(id)
        elif entry is not None and entry[1] != handle:
            self._grow.handles[entry[1]] = None
        self._grow.handles[handle] = id
        self._grow.inodes[id] = (record, handle)

    def born(self, id: FileId, record: Record, handle: bytes, place: Slot) -> None:
        """A new file, whose bytes are to be synced, is at `place`, where nothing was."""
        grow = self._grow
        grow.handles[handle] = id
        grow.inodes[id] = (record, handle)
        grow.bound[place] = id
        grow.places[id] = (place,)
        grow.names.setdefault(place.parent, set()).add(place.name)
        grow.written.add(id)
        if record.size:
            grow.times[id] = record.mtime_ns

    def doubt(self, id: FileId) -> None:
        """The bytes of a known inode are not what the record says: only a whole content helps."""
        if self._entry(id) is None:
            return
        held = [layer for layer in self._layers() if layer.inodes.get(id) is not None]
        for layer in held or [self._grow]:
            record, handle = layer.inodes.get(id) or self._entry(id) or (None, b"")
            assert record is not None
            layer.inodes[id] = (lost(record), handle)

    def forget(self, id: FileId) -> None:
        """The replica no longer has it. Its names go, too."""
        entry = self._entry(id)
        if entry is None or id == self._root:
            return
        for place in self.places(id):
            self.unbind(place)
        if self._entry(id) is not None:
            self._grow.handles[entry[1]] = None
            self._grow.inodes[id] = None
            self._grow.times.pop(id, None)
            self._grow.written.discard(id)

    def bind(self, place: Slot, id: FileId) -> None:
        """`place` means `id` from now on, whatever it meant."""
        before = self.bound(place)
        if before == id:
            return
        if before is not None:
            self.unbind(place, keep=True)
        if place.parent == LIMBO:
            self._in_limbo[place.name] = id
        self._grow.bound[place] = id
        self._grow.places[id] = (*self._places_of(id), place)
        self._grow.names.setdefault(place.parent, set()).add(place.name)

    def unbind(self, place: Slot, keep: bool = False) -> None:
        """`place` is empty from now on. An inode without any place is forgotten, unless it is to be kept."""
        id = self.bound(place)
        if id is None:
            return
        if place.parent == LIMBO:
            del self._in_limbo[place.name]
        self._grow.bound[place] = None
        self._grow.names.setdefault(place.parent, set()).add(place.name)
        left = tuple(other for other in self._places_of(id) if other != place)
        self._grow.places[id] = left
        if not left and not keep:
            self.forget(id)

    def take(self, step: Naming) -> None:
        """The effect of a naming step that was carried out."""
        match step:
            case Rename(id, source, target):
                self.unbind(source, keep=True)
                self.bind(target, id)
            case Link(id, _, target):
                self.bind(target, id)
            case Exchange(id, source, target, other):
                self.unbind(source, keep=True)
                self.unbind(target, keep=True)
                self.bind(source, other)
                self.bind(target, id)
            case Unlink(_, place) | Rmdir(_, place):
                self.unbind(place)

    # -- times and durability

    def owe_time(self, id: FileId, mtime_ns: int) -> None:
        """Set this time once the data written so far is durable."""
        self._grow.times[id] = mtime_ns

    def owes_time(self, id: FileId) -> bool:
        """Whether its data is not durable yet."""
        return any(id in layer.times for layer in self._layers())

    def times(self) -> list[tuple[FileId, int, int | None]]:
        """Whose time is to be set once the frozen layer's data is synced, to what, and to what it will be set later."""
        if self._frozen is None:
            return []
        return [(id, mtime_ns, self._grow.times.get(id)) for id, mtime_ns in self._frozen.times.items()]

    def wrote(self, id: FileId) -> None:
        """Bytes of this file are to be synced."""
        self._grow.written.add(id)

    def written(self) -> list[FileId]:
        """The known files whose bytes the frozen layer's sync is to make durable."""
        if self._frozen is None:
            return []
        return [id for id in self._frozen.written if self._entry(id) is not None]

    def freeze(self) -> None:
        """Everything so far belongs to the next commit, what follows does not."""
        assert self._frozen is None
        self._frozen, self._grow = self._grow, Layer()

    def changed(self, most: int) -> list[FileId]:
        """The last inodes that the frozen layer is about, up to `most` by themselves and `most` for a name in them."""
        if self._frozen is None:
            return []
        ids = list(islice((id for id, entry in reversed(self._frozen.inodes.items()) if entry is not None), most))
        ids += islice((place.parent for place in reversed(self._frozen.bound) if place.parent != LIMBO), most)
        return [id for id in dict.fromkeys(ids) if self._entry(id) is not None]

    def thaw(self) -> None:
        """The frozen layer did not become durable: it waits for the next freeze with what came after it."""
        if self._frozen is not None:
            self._frozen.update(self._grow)
            self._grow, self._frozen = self._frozen, None

    def commit(self, **meta: str) -> None:
        """Write the frozen layer (or, if nothing is frozen, everything) to disk, together with `meta`."""
        if self._frozen is None:
            self.freeze()
        self.write(lambda: meta)
        self.written_down()

    def write(self, meta: Callable[[], dict[str, str]]) -> None:
        """Write the frozen layer to disk, in any thread, together with what `meta` says then: nobody else sets such
        values meanwhile. It stays frozen until `written_down`, or, if this fails, `thaw`."""
        layer = self._frozen
        assert layer is not None
        inodes, bound, db = layer.inodes, layer.bound, self._writer
        with self._writing, Transaction(db):
            db.executemany("DELETE FROM inodes WHERE id = ?", [(key_of(i),) for i, e in inodes.items() if e is None])
            db.executemany(
                "INSERT OR REPLACE INTO inodes VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (row_of(id, *entry) for id, entry in inodes.items() if entry is not None),
            )
            db.executemany(
                "DELETE FROM slots WHERE parent = ? AND name = ?",
                [(key_of(slot.parent), slot.name) for slot, id in bound.items() if id is None],
            )
            db.executemany(
                "INSERT OR REPLACE INTO slots VALUES (?, ?, ?)",
                ((key_of(slot.parent), slot.name, key_of(id)) for slot, id in bound.items() if id is not None),
            )
            _put_meta(db, meta())

    def written_down(self) -> None:
        """The frozen layer was written."""
        layer = self._frozen
        assert layer is not None
        self._frozen = None
        for cache in (self._inodes, self._places, self._bound):
            if len(cache) > _CACHED:
                cache.clear()
        self._inodes.update(layer.inodes)
        self._places.update(layer.places)
        self._bound.update(layer.bound)

    def clear(self, **meta: str) -> None:
        """Forget everything; `meta` alone is left."""
        with self._writing, Transaction(self._db):
            for statement in ("DELETE FROM meta", "DELETE FROM inodes", "DELETE FROM slots"):
                self._db.execute(statement)
            _put_meta(self._db, meta)
        self._grow, self._frozen = Layer(), None
        self._in_limbo.clear()
        self._inodes.clear()
        self._places.clear()
        self._bound.clear()

    def unsound(self) -> list[tuple[FileId, Record]]:
        """Every inode whose content is not known for certain."""
        rows = self._db.execute(
            "SELECT id, kind, size, mtime, ctime, complete, suspect, handle FROM inodes WHERE NOT complete OR suspect"
        ).fetchall()
        ids = {id_of(row[0]) for row in rows}
        for layer in self._layers():
            ids.update(layer.inodes)
        found = ((id, self.record(id)) for id in ids)
        return [(id, record) for id, record in found if record is not None and not record.sound]

    def close(self) -> None:
        """Layers that were not committed are forgotten."""
        self._writer.close()
        self._db.close()

    # -- inside

    def _layers(self) -> tuple[Layer, ...]:
        return (self._grow,) if self._frozen is None else (self._grow, self._frozen)

    def _entry(self, id: FileId) -> Entry | None:
        for layer in self._layers():
            if id in layer.inodes:
                return layer.inodes[id]
        if id not in self._inodes:
            row = self._db.execute(
                "SELECT kind, size, mtime, ctime, complete, suspect, handle FROM inodes WHERE id = ?", (key_of(id),)
            ).fetchone()
            self._inodes[id] = None if row is None else entry_of(row)
        return self._inodes[id]

    def _places_of(self, id: FileId) -> tuple[Slot, ...]:
        for layer in self._layers():
            if id in layer.places:
                return layer.places[id]
        if self._entry(id) is None:
            return ()
        if id not in self._places:
            rows = self._db.execute("SELECT parent, name FROM slots WHERE id = ?", (key_of(id),)).fetchall()
            self._places[id] = tuple(Slot(id_of(parent), name) for parent, name in rows)
        return self._places[id]


def _portions(keys: Iterable[_Key]) -> Iterator[list[_Key]]:
    """As many at once as are worth a statement of their own."""
    left = iter(keys)
    while some := list(islice(left, _AT_ONCE)):
        if len(some) < _FEW:
            return
        yield some


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA synchronous=FULL")
    return db


def _put_meta(db: sqlite3.Connection, values: dict[str, str]) -> None:
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

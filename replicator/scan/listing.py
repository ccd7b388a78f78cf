"""What is in a directory: two system calls for each name, and no Python object.

Takes a descriptor of a directory that was opened through a SourceRoot; gives rows and the names of the directories in
it. The kernel writes into arrays that are kept from one directory to the next, so each thread has a Listing of its
own.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replicator import syscalls
from replicator.model import FileId
from replicator.scan.btrfs_search import FIRST
from replicator.scan.row import INODE, NANOSECONDS, Numbers, Rows
from replicator.tree.handle_form import ARRAYS
from replicator.tree.handles import SourceRoot

DIRECTORY: Final = 0x4
"""S_IFDIR >> 12."""

_ENTRIES: Final = 1 << 16
"""Bytes of names that are taken at a time."""

_SHORTEST: Final = 24
"""Bytes of an entry with a short name."""

_LENGTH_AT, _NAME_AT = 16, 19  # d_reclen and d_name in struct linux_dirent64, which begins with d_ino
_DOT: Final = ord(".")
_HANDLE_BYTES: Final = 24
_HANDLE: Final = np.dtype([("length", "=u4"), ("kind", "=i4"), ("data", "u1", _HANDLE_BYTES)])
_STATUS: Final = np.dtype(
    {
        "names": ["nlink", "mode", "ino", "size", "ctime", "ctime_ns", "mtime", "mtime_ns"],
        "formats": ["=u4", "=u2", "=u8", "=u8", "=i8", "=u4", "=i8", "=u4"],
        "offsets": [16, 28, 32, 40, 96, 104, 112, 120],
        "itemsize": 256,
    }
)
"""What counts here of struct statx."""

_TRIES: Final = 10


Refused = Callable[[int, bytes, OSError | ValueError], None]
"""Directory, name, why."""


class Entries(NamedTuple):
    """Some names of a directory."""

    rows: Rows
    """Of their inodes; one with two names in the directory comes twice."""
    directories: list[bytes]
    """Names of those that are directories."""


class Listing:
    """The arrays, and how to fill them."""

    def __init__(self, source: SourceRoot, refused: Refused) -> None:
        """`refused` is told of each name that cannot be looked at."""
        self._source = source
        self._refused = refused
        self._forms = ARRAYS[source.fstype]
        self._entries = np.zeros(_ENTRIES // 8, "=u8")
        self._handles = np.zeros(_ENTRIES // _SHORTEST, _HANDLE)
        self._statuses = np.zeros(_ENTRIES // _SHORTEST, _STATUS)

    def read(self, fd: int) -> Iterator[Entries]:
        """All names in a directory, but for those that are refused. OSError: it cannot be listed."""
        while got := syscalls.getdents(fd, self._entries.ctypes.data, _ENTRIES):
            yield self._look(fd, self._names(got))

    def _names(self, got: int) -> list[int]:
        """Addresses of the names, in the order of inode numbers: on disk, neighbours lie together."""
        raw = self._entries.data.cast("B")
        lengths = raw.cast("H")
        found: list[int] = []
        at = 0
        while at < got:
            if raw[at + _NAME_AT] != _DOT or not _itself_or_above(raw, at + _NAME_AT):
                found.append(at)
            at += lengths[(at + _LENGTH_AT) >> 1]
        places = np.array(found, np.intp)
        places = places[np.argsort(self._entries[places >> 3], kind="stable")]
        names: list[int] = (places + (self._entries.ctypes.data + _NAME_AT)).tolist()
        return names

    def _look(self, fd: int, names: list[int]) -> Entries:
        handles, statuses = self._handles[: len(names)], self._statuses[: len(names)]
        handles["length"] = _HANDLE_BYTES
        failed = syscalls.look_at(
            fd, names, handles.ctypes.data, _HANDLE.itemsize, statuses.ctypes.data, _STATUS.itemsize
        )
        rows = np.zeros(len(names), INODE)
        known = self._identify(handles, rows)
        known[failed] = False
        known &= rows["ino"] == statuses["ino"]  # it was the same inode at both calls
        known &= (rows["root"] == 0) | (rows["ino"] >= FIRST)  # empty places in snapshots are for id_at to tell
        for field in ("mode", "nlink", "size"):
            rows[field] = statuses[field]
        for field in ("ctime", "mtime"):
            rows[field] = statuses[field] * np.int64(NANOSECONDS) + statuses[f"{field}_ns"]
        inside = np.flatnonzero(known & (rows["mode"] >> 12 == DIRECTORY))
        directories = [ctypes.string_at(names[number]) for number in inside]
        found = [rows[known]]
        for number in np.flatnonzero(~known):
            name = ctypes.string_at(names[number])
            row = self._one(fd, name)
            if row is not None:
                found.append(row)
                if row["mode"][0] >> 12 == DIRECTORY:
                    directories.append(name)
        return Entries(np.concatenate(found), directories)

    def _identify(self, handles: Numbers, rows: Rows) -> NDArray[np.bool_]:
        """Put the identities in handles into rows; which handles were of a known form."""
        known = np.zeros(len(rows), np.bool_)
        for (kind, length), form in self._forms.items():
            those = (handles["kind"] == kind) & (handles["length"] == length)
            ids = np.ascontiguousarray(handles["data"][those][:, :length]).view(form)[:, 0]
            for field in form.names or ():
                rows[field][those] = ids[field]
            known |= those
        return known

    def _one(self, fd: int, name: bytes) -> Rows | None:
        """One row, or None if the name is gone or refused."""
        for _ in range(_TRIES):
            try:
                id, _ = self._source.id_at(fd, name)
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                return None
            except (OSError, ValueError) as error:
                self._refused(fd, name, error)
                return None
            if id.ino == status.st_ino:
                return row_of(id, status)
        return None  # a name that changes hands that fast is watched


def _itself_or_above(raw: memoryview, at: int) -> bool:
    """Whether the name at that place, which begins with a dot, is "." or ".."."""
    return raw[at + 1] == 0 or (raw[at + 1] == _DOT and raw[at + 2] == 0)


def row_of(id: FileId, status: os.stat_result) -> Rows:
    """One row."""
    rows = np.zeros(1, INODE)
    rows["ino"], rows["root"], rows["gen"] = id.ino, id.root, id.gen
    rows["mode"], rows["nlink"], rows["size"] = status.st_mode, status.st_nlink, status.st_size
    for field, time in (("ctime", status.st_ctime_ns), ("mtime", status.st_mtime_ns)):
        rows[field] = np.uint64(time % 2**64).astype("<i8")
    return rows

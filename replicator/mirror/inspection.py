"""What a replica really has, for comparisons: names and inodes as the disk shows them, foreign ones included.

Reads only, beneath the root; limbo is not shown. OSError as the filesystem raises it (FileNotFoundError also for a
known inode that is not where it should be), KeyError for an id that is not known.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from replicator.errors import RemoteError
from replicator.mirror import attributes
from replicator.mirror.foreign import Foreign
from replicator.mirror.ground import AstrayError, Ground, handle_of, open_beneath
from replicator.mirror.inventory import Inventory
from replicator.mirror.limbo import Limbo
from replicator.mirror.steps import LIMBO
from replicator.model import Attributes, FileId, Kind, Slot, kind_of
from replicator.verify.digests import UNKNOWN


class Entry(NamedTuple):
    """One name really in a directory; `id` is None for an inode that only the replica has."""

    name: bytes
    kind: Kind
    id: FileId | None


class Look(NamedTuple):
    """One name really in a directory, and the replica's own file handle of what it means."""

    name: bytes
    kind: Kind
    handle: bytes


def look(fd: int, names: Iterable[bytes]) -> list[Look]:
    """Those of the names that are in an open directory; from any thread. OSError."""
    found = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            handle = handle_of(fd, name)
            if handle is not None:
                found.append(Look(name, kind_of(mode), handle))
    return found


class Inspection:
    """Of one replica."""

    def __init__(self, ground: Ground, limbo: Limbo, inventory: Inventory, foreign: Foreign) -> None:
        self._ground = ground
        self._limbo = limbo
        self._inventory = inventory
        self._foreign = foreign

    def list_directory(self, id: FileId) -> list[Entry]:
        """The names really in a known directory, without what is the replica's own. OSError, KeyError if unknown."""
        fd = self.open_directory(id)
        try:
            seen = look(fd, sorted(map(os.fsencode, os.listdir(fd))))
        finally:
            os.close(fd)
        by_handle = self._inventory.by_handle
        return [Entry(name, kind, by_handle(handle)) for name, kind, handle in seen if not self.is_own(id, name)]

    def open_directory(self, id: FileId) -> int:
        """A descriptor of a directory, to be listed with `look` from any thread. OSError, KeyError."""
        return self._open(id, os.O_RDONLY | os.O_DIRECTORY)

    def is_own(self, id: FileId, name: bytes) -> bool:
        """Whether this name is the replica's own business: limbo, which comes and goes, or what only mkfs made."""
        own = name in (self._limbo.name, b"lost+found")
        return own and id == self._inventory.root and self._inventory.bound(Slot(id, name)) is None

    def attributes(self, id: FileId) -> tuple[Kind, int, Attributes]:
        """Kind, size (of a regular file, 0 for all else) and attributes of an inode. OSError, KeyError."""
        fd = self._open(id, os.O_PATH)
        try:
            return attributes.read_attributes(fd)
        finally:
            os.close(fd)

    def open_content(self, id: FileId) -> int:
        """A descriptor of a regular file, to be read from any thread. OSError, KeyError."""
        fd = self._open(id, os.O_RDONLY | os.O_NOATIME)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "it is no regular file")
        return fd

    def beneath(self, id: FileId, name: bytes, most: int) -> list[tuple[bytes, ...]]:
        """Up to `most` paths in the foreign directory `name` of a known directory; unreadable ones show nothing."""
        found: list[tuple[bytes, ...]] = []
        with _astray_is_missing():
            todo: list[tuple[int, bytes, tuple[bytes, ...]]] = [(os.dup(self._ground.directory(id)), name, ())]
        while todo:
            above, name, path = todo.pop()
            try:
                fd = open_beneath(above, name, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                continue
            finally:
                os.close(above)
            try:
                with os.scandir(fd) as entries:
                    for entry in sorted(entries, key=lambda entry: entry.name):
                        if len(found) >= most:
                            break
                        child = os.fsencode(entry.name)
                        found.append((*path, child))
                        if entry.is_dir(follow_symlinks=False):
                            todo.append((os.dup(fd), child, (*path, child)))
            finally:
                os.close(fd)
        return found

    def names(self, id: FileId) -> dict[bytes, bytes]:
        """All names in a known directory, on disk or in the inventory, without the replica's own, and what they mean:
        the wide form of an id, or UNKNOWN. Sorted. OSError, KeyError."""
        known = self._inventory.ids_in(id)
        with _astray_is_missing():
            extra = self._foreign.extra_names(id, known)
        known.update(dict.fromkeys(extra, UNKNOWN))
        return dict(sorted(known.items()))

    def count(self, place: Slot, most: int) -> int:
        """How many names would be lost with a place and all beneath it, up to `most`; that too if it cannot be read.

        None with a file that is known to have another name.
        """
        known = self._inventory.bound(place)
        named = () if known is None else [at for at in self._inventory.places(known) if at.parent != LIMBO]
        if len(named) > 1:
            return 0
        try:
            fd = open_beneath(self._ground.directory(place.parent), place.name, os.O_RDONLY | os.O_DIRECTORY)
        except NotADirectoryError:
            return min(1, most)
        except (OSError, AstrayError):
            return most
        found, open_directories = 1, [fd]
        try:
            while open_directories and found < most:
                fd = open_directories.pop()
                try:
                    with os.scandir(fd) as entries:
                        for entry in entries:
                            found += 1
                            if found < most and entry.is_dir(follow_symlinks=False):
                                name = os.fsencode(entry.name)
                                open_directories.append(open_beneath(fd, name, os.O_RDONLY | os.O_DIRECTORY))
                finally:
                    os.close(fd)
        except OSError:
            return most
        finally:
            for fd in open_directories:
                os.close(fd)
        return min(found, most)

    def nameless(self, most: int) -> list[FileId]:
        """Up to `most` inodes that are kept without a name of the user's."""
        return [id for _, id in islice(self._inventory.children(LIMBO), most)]

    def extra_names(self, id: FileId) -> list[bytes]:
        """Names in a known directory that only the replica has."""
        with _astray_is_missing():
            return self._foreign.extra_names(id, dict(self._inventory.children(id)))

    def _open(self, id: FileId, flags: int) -> int:
        if id == LIMBO:
            raise RemoteError("limbo is nobody's business")
        with _astray_is_missing():
            return self._ground.open(id, flags)


@contextlib.contextmanager
def _astray_is_missing() -> Iterator[None]:
    try:
        yield
    except AstrayError as error:
        raise FileNotFoundError(errno.ENOENT, str(error)) from error

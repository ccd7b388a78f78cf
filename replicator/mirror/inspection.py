"""What a replica really has, for comparisons: names and inodes as the disk shows them, foreign ones included.

Reads only, beneath the root; limbo is not shown. OSError as the filesystem raises it (FileNotFoundError also for a
known inode that is not where it should be), KeyError for an id that is not known.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import xxhash

from replicator.errors import RemoteError
from replicator.mirror import attributes
from replicator.mirror.foreign import Foreign
from replicator.mirror.ground import AstrayError, Ground, open_beneath
from replicator.mirror.inventory import Inventory
from replicator.mirror.limbo import Limbo
from replicator.mirror.steps import LIMBO
from replicator.model import Attributes, FileId, Kind, Slot, kind_of


class Digest(NamedTuple):
    """One inode of the replica, as `verify` compares it."""

    kind: Kind
    size: int
    attributes: Attributes
    content: str
    """xxh3_128 of a regular file's bytes, hexadecimal; empty for all else."""


class Entry(NamedTuple):
    """One name really in a directory; `id` is None for what only the replica has."""

    name: bytes
    kind: Kind
    id: FileId | None


class Inspection:
    """Of one replica."""

    def __init__(self, ground: Ground, limbo: Limbo, inventory: Inventory, foreign: Foreign) -> None:
        self._ground = ground
        self._limbo = limbo
        self._inventory = inventory
        self._foreign = foreign

    def list_directory(self, id: FileId) -> list[Entry]:
        """The names really in a known directory, without what is the replica's own. OSError, KeyError if unknown."""
        fd = self._open(id, os.O_RDONLY | os.O_DIRECTORY)
        entries = []
        try:
            for text in sorted(os.listdir(fd)):
                name = os.fsencode(text)
                if Slot(id, name) == self._limbo.place:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
                    entries.append(Entry(name, kind_of(mode), self._inventory.bound(Slot(id, name))))
        finally:
            os.close(fd)
        return entries

    def digest(self, id: FileId) -> Digest:
        """What the replica really has of an inode; reads all of it. OSError, KeyError if it is not there."""
        fd = self._open(id, os.O_PATH)
        try:
            kind, size, have = attributes.read_attributes(fd)
        finally:
            os.close(fd)
        return Digest(kind, size, have, self._content(id) if kind is Kind.FILE else "")

    def names(self, id: FileId) -> list[bytes]:
        """All names in a known directory, on disk or in the inventory, sorted, without the replica's own. OSError,
        KeyError."""
        with _astray_is_missing():
            extra = self._foreign.extra_names(id)
        return sorted({*extra, *(name for name, _ in self._inventory.children(id))})

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
            return self._foreign.extra_names(id)

    def _open(self, id: FileId, flags: int) -> int:
        if id == LIMBO:
            raise RemoteError("limbo is nobody's business")
        with _astray_is_missing():
            return self._ground.open(id, flags)

    def _content(self, id: FileId) -> str:
        fd = self._open(id, os.O_RDONLY | os.O_NOATIME)
        digest = xxhash.xxh3_128()
        try:
            while data := os.read(fd, 1 << 20):
                digest.update(data)
        finally:
            os.close(fd)
        return digest.hexdigest()


@contextlib.contextmanager
def _astray_is_missing() -> Iterator[None]:
    try:
        yield
    except AstrayError as error:
        raise FileNotFoundError(errno.ENOENT, str(error)) from error

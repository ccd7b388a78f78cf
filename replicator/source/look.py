"""Looks at names and liveness in the source, for the resolver.

Takes slots and ids, gives what is there now. Keeps some directories open, by descriptor without access (O_PATH), so
that a name costs no path walk. Opens nothing but directories. Errors of a sick disk come out as OSError.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict

from replicator.model import FileId, Slot, kind_of
from replicator.tree.handles import SourceRoot, Stale
from replicator.tree.resolver import DirectoryGone, Found

_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
"""As os.fsencode, which is slow for directories of thousands of names."""


class SourceNamespace:
    """The resolver's `Namespace`, on a real directory."""

    def __init__(self, source: SourceRoot, keep: int = 256) -> None:
        """`keep`: how many directories stay open."""
        self._source = source
        self._keep = keep
        self._open: OrderedDict[FileId, int] = OrderedDict()

    def lookup(self, slot: Slot) -> Found | None:
        """What the slot holds now; None if nothing. DirectoryGone if its directory cannot be opened by its id."""
        try:
            directory = self._directory(slot.parent)
        except Stale:
            raise DirectoryGone from None
        try:
            while True:
                id, _ = self._source.id_at(directory, slot.name)
                mode = os.lstat(slot.name, dir_fd=directory).st_mode
                if self._source.id_at(directory, slot.name)[0] == id:
                    return Found(id, kind_of(mode))
        except FileNotFoundError:
            return None

    def names(self, directory: FileId) -> dict[bytes, int] | None:
        """All names in the directory with their inode numbers, as it has them; None if it is gone."""
        try:
            fd = self._source.open_by_id(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
        except Stale:
            return None
        try:
            with os.scandir(fd) as entries:
                return {entry.name.encode(_ENCODING, _ERRORS): entry.inode() for entry in entries}
        finally:
            os.close(fd)

    def alive(self, id: FileId) -> bool:
        """Whether the inode exists and has a name somewhere."""
        try:
            fd = self._source.open_by_id(id)
        except Stale:
            return False
        try:
            return os.fstat(fd).st_nlink > 0
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close all directories."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _directory(self, id: FileId) -> int:
        fd = self._open.get(id)
        if fd is not None:
            self._open.move_to_end(id)
            return fd
        fd = self._open[id] = self._source.open_by_id(id)
        if len(self._open) > self._keep:
            os.close(self._open.popitem(last=False)[1])
        return fd

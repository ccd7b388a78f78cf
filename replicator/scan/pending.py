"""The directories that a walk has found and not listed yet, shared by its threads.

The last found is listed first, so few are open at a time; where a tree makes that many nevertheless, they are
remembered by identity instead. All of it may be called from several threads.
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass
from typing import Final

from replicator.model import FileId
from replicator.scan.listing import Refused
from replicator.tree.handles import SourceRoot, Stale

OPEN: Final = 128
"""Directories that are kept open at most."""

_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What opening a directory says that was removed, or became something else, since it was found."""


@dataclass(slots=True)
class _Parent:
    """A directory with some in it that are to be listed."""

    fd: int
    """-1 if it is not open."""
    id: FileId | None
    """If it is not open."""
    names: list[bytes]


class Pending:
    """To begin with, the source itself."""

    def __init__(self, source: SourceRoot, refused: Refused) -> None:
        """`refused` is told of each directory that cannot be opened."""
        self._source = source
        self._refused = refused
        self._changed = threading.Condition()
        self._parents = [_Parent(os.dup(source.fd), None, [b"."])]
        self._busy = 0
        self._closed = False

    def take(self) -> int | None:
        """A descriptor of the next directory, to be given back to `done`; None if all are listed.

        Waits while others may still find some.
        """
        with self._changed:
            while True:
                while not self._parents and self._busy and not self._closed:
                    self._changed.wait()
                if not self._parents or self._closed:
                    return None
                fd = self._open()
                if fd is not None:
                    self._busy += 1
                    return fd

    def done(self, fd: int, directories: list[bytes]) -> None:
        """The directory `fd` was listed, and these are in it; it is closed when they are."""
        with self._changed:
            try:
                if directories and not self._closed:
                    self._add(fd, directories)
                else:
                    os.close(fd)
            finally:
                self._busy -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Forget what was not listed."""
        with self._changed:
            self._closed = True
            for parent in self._parents:
                _close(parent.fd)
            self._parents.clear()
            self._changed.notify_all()

    def _add(self, fd: int, directories: list[bytes]) -> None:
        if len(self._parents) < OPEN:
            self._parents.append(_Parent(fd, None, directories))
            return
        try:
            self._parents.append(_Parent(-1, self._source.id_of(fd), directories))
        finally:
            os.close(fd)

    def _open(self) -> int | None:
        """The next directory; None if it is gone or refused."""
        parent = self._parents[-1]
        name = parent.names.pop()
        above = parent.fd
        try:
            if parent.id is not None:
                above = self._source.open_by_id(parent.id)
            return os.open(name, _LIST, dir_fd=above)
        except Stale:
            parent.names.clear()
        except OSError as error:
            if error.errno not in _GONE:
                self._refused(above, name, error)
        finally:
            if not parent.names:
                self._parents.pop()
                _close(parent.fd)
            if parent.id is not None:
                _close(above)
        return None


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)

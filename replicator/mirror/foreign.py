"""What somebody else put into the replica: found, and removed without ever destroying what the inventory knows.

Takes open directories and names beneath the root. A known inode that turns up under a foreign name loses that name, or,
if it is nowhere it should be, waits in limbo; everything else goes, directories with all that is in them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection

from replicator import syscalls
from replicator.mirror.ground import AstrayError, Ground, handle_of, open_beneath
from replicator.mirror.inventory import Inventory
from replicator.mirror.limbo import Limbo
from replicator.mirror.steps import LIMBO, limbo_place
from replicator.model import FileId, Slot


class Foreign:
    """Raises OSError when an entry cannot be removed."""

    def __init__(self, ground: Ground, limbo: Limbo, inventory: Inventory) -> None:
        self._ground = ground
        self._limbo = limbo
        self._inventory = inventory

    def purge(self, dirfd: int, name: bytes) -> None:
        """Remove the entry `name`, which is none of ours; nothing happens if it is not there."""
        try:
            self._purge(dirfd, name)
        except RecursionError:
            raise OSError(errno.ELOOP, "a foreign directory is too deep to be removed: remove it by hand") from None

    def _purge(self, dirfd: int, name: bytes) -> None:
        handle = handle_of(dirfd, name)
        if handle is None:
            return
        known = self._inventory.by_handle(handle)
        if known is not None:
            self._spare_known(dirfd, name, known)
            return
        if not stat.S_ISDIR(os.stat(name, dir_fd=dirfd, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=dirfd)
            return
        fd = open_beneath(dirfd, name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for child in os.listdir(fd):
                self._purge(fd, os.fsencode(child))
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=dirfd)

    def purge_place(self, place: Slot) -> None:
        """The same for a place."""
        fd = os.dup(self._ground.directory(place.parent))
        try:
            self.purge(fd, place.name)
        finally:
            os.close(fd)

    def empty(self, directory: FileId) -> None:
        """Purge whatever is in a directory of which no name is known any more."""
        fd = open_beneath(self._ground.directory(directory), b".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            for child in os.listdir(fd):
                self.purge(fd, os.fsencode(child))
        finally:
            os.close(fd)

    def extra_names(self, directory: FileId, known: Collection[bytes]) -> list[bytes]:
        """The names on disk that are not `known`, sorted, without the replica's own."""
        inventory, ground = self._inventory, self._ground
        fd = open_beneath(ground.directory(directory), b".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            present = {os.fsencode(name) for name in os.listdir(fd)}
        finally:
            os.close(fd)
        present.difference_update(known)
        if directory == inventory.root:
            present.discard(b"lost+found")
        return sorted(name for name in present if Slot(directory, name) != self._limbo.place)

    def missing_places(self, id: FileId) -> list[Slot]:
        """Those recorded names of a known inode under which it is not."""
        lost = []
        for place in self._inventory.places(id):
            try:
                if not self._ground.holds(place, id):
                    lost.append(place)
            except AstrayError:
                lost.append(place)
            except OSError:
                continue  # unreadable is not gone
        return lost

    def _spare_known(self, dirfd: int, name: bytes, known: FileId) -> None:
        lost = self.missing_places(known)
        if len(lost) < len(self._inventory.places(known)):
            os.unlink(name, dir_fd=dirfd)
            return
        self._limbo.ensure()
        waiting = limbo_place(known)
        limbo_fd = self._ground.directory(LIMBO)
        self.purge(limbo_fd, waiting.name)
        syscalls.renameat2(dirfd, name, limbo_fd, waiting.name, syscalls.RENAME_NOREPLACE)
        self._inventory.bind(waiting, known)
        for place in lost:
            self._inventory.unbind(place)

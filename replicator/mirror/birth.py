"""New inodes of the replica, made in limbo: from a fact, or as a copy when a foreign hard link must be left alone.

Takes facts with their bytes; gives file handles and descriptors. What cannot be finished is removed again, so limbo
holds only whole inodes (or, of a partial fact, all that it brought).
"""

from __future__ import annotations

import errno
import os
import stat

from replicator import syscalls
from replicator.mirror import attributes
from replicator.mirror.content import Piece, copy_content, unlink_quietly, write_in_place
from replicator.mirror.durability import write_out
from replicator.mirror.ground import Ground, handle_of, open_beneath
from replicator.mirror.intents import Intent, IntentLog
from replicator.mirror.inventory import Inventory
from replicator.mirror.limbo import Limbo
from replicator.mirror.steps import LIMBO, limbo_place
from replicator.model import FileId, InodeFact, Kind, Slot

_FORMATS = {
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
}


class Births:
    """Raises OSError as the filesystem does."""

    def __init__(self, ground: Ground, limbo: Limbo, inventory: Inventory, intents: IntentLog) -> None:
        self._ground = ground
        self._limbo = limbo
        self._inventory = inventory
        self._intents = intents

    def create(self, fact: InodeFact, pieces: list[Piece]) -> bytes:
        """Make the inode at its place in limbo, with all that the fact says; its file handle."""
        return self._make(limbo_place(fact.id).name, fact, pieces)

    def break_link(self, id: FileId, fd: int) -> int:
        """Give a regular file, open at `fd`, an inode of its own; the open descriptor of that. `fd` is closed."""
        kind, _, have = attributes.read_attributes(fd)
        assert kind is Kind.FILE
        self._limbo.ensure()
        name = self._limbo.spare().name
        limbo_fd = self._ground.directory(LIMBO)
        copy = open_beneath(limbo_fd, name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            copy_content(copy, fd)
            attributes.apply(copy, have)  # its time follows when its bytes are synced
            write_out([copy], self._ground.fstype)
            self._replace_everywhere(id, name, copy)
        except OSError:
            os.close(copy)
            unlink_quietly(limbo_fd, name)
            raise
        os.close(fd)
        return copy

    def part(self, id: FileId, fact: InodeFact, fd: int) -> int:
        """The same for any inode but a directory, for a change of attributes; `fd` and the result are O_PATH."""
        if fact.kind is Kind.FILE:
            os.close(self.break_link(id, self._ground.open(id, os.O_RDONLY)))
            os.close(fd)
        else:
            self._limbo.ensure()
            name = self._limbo.spare().name
            self._make(name, fact, [])
            copy = open_beneath(self._ground.directory(LIMBO), name, os.O_PATH)
            try:
                self._replace_everywhere(id, name, copy)
            finally:
                os.close(copy)
            os.close(fd)
        return self._ground.open(id, os.O_PATH)

    def _replace_everywhere(self, id: FileId, name: bytes, copy: int) -> None:
        """Put the inode `copy`, which has the spare name `name`, under every name of `id`; each by one exchange."""
        limbo_fd = self._ground.directory(LIMBO)
        handle = handle_of(copy, b"")
        record = self._inventory.record(id)
        assert handle is not None
        assert record is not None
        self._intents.append(Intent(0, list(self._inventory.places(id)), [], [(id, handle, record)]))
        for place in self._inventory.places(id):
            spare = self._limbo.spare().name
            syscalls.linkat(limbo_fd, name, limbo_fd, spare)
            syscalls.renameat2(
                limbo_fd, spare, self._ground.directory(place.parent), place.name, syscalls.RENAME_EXCHANGE
            )
            os.unlink(spare, dir_fd=limbo_fd)
            self._owe_time(place.parent)
        os.unlink(name, dir_fd=limbo_fd)
        self._inventory.put(id, record, handle)

    def _owe_time(self, directory: FileId) -> None:
        """The exchange changed the directory's time, and perhaps no fact of this epoch is about it."""
        record = self._inventory.record(directory)
        if directory != LIMBO and record is not None and record.mtime_ns != -1:
            self._inventory.owe_time(directory, record.mtime_ns)

    def _make(self, name: bytes, fact: InodeFact, pieces: list[Piece]) -> bytes:
        limbo_fd = self._ground.directory(LIMBO)
        wanted = fact.attributes
        if handle_of(limbo_fd, name) is not None:
            if self._inventory.bound(Slot(LIMBO, name)) is not None:
                raise OSError(errno.EEXIST, "its place in limbo is taken")
            # A leftover that nobody knows: names in limbo are ours.
            self._remove(limbo_fd, name)
        match fact.kind:
            case Kind.FILE:
                fd = open_beneath(limbo_fd, name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            case Kind.DIRECTORY:
                os.mkdir(name, 0o700, dir_fd=limbo_fd)
                fd = open_beneath(limbo_fd, name, os.O_RDONLY | os.O_DIRECTORY)
            case Kind.SYMLINK:
                os.symlink(wanted.target, name, dir_fd=limbo_fd)
                fd = open_beneath(limbo_fd, name, os.O_PATH)
            case kind:
                os.mknod(name, 0o600 | _FORMATS[kind], wanted.rdev, dir_fd=limbo_fd)
                fd = open_beneath(limbo_fd, name, os.O_PATH)
        try:
            if fact.kind is Kind.FILE:
                write_in_place(fd, fact, pieces)
            if not fact.partial:
                attributes.apply(fd, wanted)
                if fact.size == 0:
                    attributes.set_time(fd, wanted.mtime_ns)
            handle = handle_of(fd, b"")
            assert handle is not None
        except OSError:
            self._remove(limbo_fd, name)
            raise
        finally:
            os.close(fd)
        return handle

    def _remove(self, limbo_fd: int, name: bytes) -> None:
        if stat.S_ISDIR(os.stat(name, dir_fd=limbo_fd, follow_symlinks=False).st_mode):
            os.rmdir(name, dir_fd=limbo_fd)
        else:
            os.unlink(name, dir_fd=limbo_fd)

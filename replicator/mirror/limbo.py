"""Limbo: a private directory in the replica's root for inodes that have no name in the tree.

Made on demand (mode 0700, no inherited ACLs), removed in each durable cycle if it is empty, so that a replica at rest
shows nothing of it. Its name is recorded before it is made, so it is found again after a crash; when the source's user
comes to own that name, limbo takes another.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Collection

from replicator import syscalls
from replicator.mirror.ground import Ground, handle_of, open_beneath
from replicator.mirror.inventory import Inventory
from replicator.mirror.steps import LIMBO
from replicator.model import Slot

NAME = b".rsyncfs-limbo"
_META = "limbo"


class Limbo:
    """Keeps `ground.limbo_fd`. `touched_root` is set when the root directory's times have suffered."""

    def __init__(self, ground: Ground, inventory: Inventory) -> None:
        self.touched_root = False
        self._ground = ground
        self._inventory = inventory
        recorded = inventory.meta(_META)
        # While limbo changes its name there are two that may be it.
        self._candidates = [] if recorded is None else os.fsencode(recorded).split(b"/")
        self._name = self._candidates[-1] if self._candidates else NAME
        self._spares = 0

    @property
    def name(self) -> bytes:
        """What limbo is, or would be, called in the replica's root."""
        return self._name

    @property
    def candidates(self) -> list[bytes]:
        """The names that it may have, or may have had, in the replica's root."""
        return [self._name, *self._candidates]

    @property
    def place(self) -> Slot | None:
        """The name that limbo has in the tree while it is there."""
        return None if self._ground.limbo_fd is None else Slot(self._inventory.root, self._name)

    def find(self) -> None:
        """Open the limbo that an earlier process left."""
        for name in self._candidates:
            if self._ground.limbo_fd is None and self._inventory.bound(Slot(self._inventory.root, name)) is None:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    self._ground.limbo_fd = open_beneath(self._ground.root_fd, name, os.O_RDONLY | os.O_DIRECTORY)
                    self._name = name

    def ensure(self, wanted: Collection[bytes] = ()) -> None:
        """Make limbo if it is not there, under a name that neither the tree nor `wanted` (names in the root) has."""
        if self._name in wanted and self._ground.limbo_fd is not None:
            name = self._free_name(wanted)
            self._record(self._name, name)
            syscalls.renameat2(self._ground.root_fd, self._name, self._ground.root_fd, name, syscalls.RENAME_NOREPLACE)
            self._name, self.touched_root = name, True
            self._record(name)
        self.find()  # one that could be made, but not be opened
        if self._ground.limbo_fd is not None:
            return
        if (
            self._candidates != [self._name]
            or self._name in wanted
            or handle_of(self._ground.root_fd, self._name) is not None
        ):
            self._name = self._free_name(wanted)
            self._record(self._name)
        os.mkdir(self._name, 0o700, dir_fd=self._ground.root_fd)
        self.touched_root = True
        fd = open_beneath(self._ground.root_fd, self._name, os.O_RDONLY | os.O_DIRECTORY)
        for attribute in os.listxattr(fd):
            if attribute.startswith("system.posix_acl_"):
                os.removexattr(fd, attribute)
        os.fchmod(fd, 0o700)
        self._ground.limbo_fd = fd

    def spare(self) -> Slot:
        """A place in limbo that nothing has."""
        fd = self._ground.directory(LIMBO)
        while True:
            self._spares += 1
            name = b"spare-%d" % self._spares
            if handle_of(fd, name) is None:
                return Slot(LIMBO, name)

    def listing(self) -> list[bytes]:
        """The names really in limbo."""
        if self._ground.limbo_fd is None:
            return []
        # btrfs shows an open directory as it was when it was opened, or last rewound.
        fd = open_beneath(self._ground.limbo_fd, b".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)

    def rest(self) -> None:
        """Remove limbo if nothing is in it."""
        fd = self._ground.limbo_fd
        if fd is None or next(iter(self._inventory.children(LIMBO)), None) is not None:
            return
        try:
            os.rmdir(self._name, dir_fd=self._ground.root_fd)
        except OSError:
            return
        self.touched_root = True
        os.close(fd)
        self._ground.limbo_fd = None

    def close(self) -> None:
        """Close the descriptor; what is in limbo stays."""
        if self._ground.limbo_fd is not None:
            os.close(self._ground.limbo_fd)
            self._ground.limbo_fd = None

    def _free_name(self, wanted: Collection[bytes]) -> bytes:
        number = 0
        while True:
            name = NAME if number == 0 else b"%s-%d" % (NAME, number)
            taken = self._inventory.bound(Slot(self._inventory.root, name)) is not None
            if not taken and name not in wanted and handle_of(self._ground.root_fd, name) is None:
                return name
            number += 1

    def _record(self, *names: bytes) -> None:
        if self._candidates != list(names):
            try:
                self._inventory.set_meta(**{_META: os.fsdecode(b"/".join(names))})
            except sqlite3.OperationalError as error:
                raise OSError(errno.ENOSPC, f"inventory: {error}") from error
            self._candidates = list(names)

"""Control groups by their number: a cgroup v2 id is the file handle of the group's directory.

Takes ids as records carry them; gives paths below the cgroup2 mount, and remembers what it has seen, so that a group
that was removed since keeps its path. Sees the whole hierarchy (of its own cgroup namespace) through a mount that is in
no directory, wherever the host has mounted it. Where the kernel has no cgroup2, or refuses, no path is known.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import time
from collections import OrderedDict
from typing import Final

from replicator import syscalls
from replicator.observe.log import printable

log = logging.getLogger(__name__)

_KERNFS: Final = 0xFE  # FILEID_KERNFS
_ID: Final = struct.Struct("=Q")
_DELETED: Final = " (deleted)"
LIMIT: Final = 1 << 14
"""Paths that are remembered."""
WALK_EVERY: Final = 1.0  # s


class Cgroups:
    """Paths of control groups. `close` gives the mount back."""

    def __init__(self) -> None:
        self._paths: OrderedDict[int, str | None] = OrderedDict()
        self._walked = -WALK_EVERY
        self._top: int | None = None
        try:
            mounted = syscalls.mount_detached(b"cgroup2", b"cgroup2", {})
        except OSError as error:
            log.warning("cannot mount cgroup2 (%s): writers are shown without their control groups", error.strerror)
            return
        try:
            self._top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mounted)
        finally:
            os.close(mounted)

    def path(self, id: int) -> str | None:
        """The group's path, printable, "/" for the root; None if it is not known. Each id costs system calls once."""
        try:
            return self._paths[id]
        except KeyError:
            pass
        found = self._find(id)
        if len(self._paths) >= LIMIT:
            self._paths.popitem(last=False)
        self._paths[id] = found
        return found

    def close(self) -> None:
        """Forget nothing, and learn nothing more. May be called twice."""
        if self._top is not None:
            os.close(self._top)
            self._top = None

    def _find(self, id: int) -> str | None:
        if self._top is None:
            return None
        try:
            fd = syscalls.open_by_handle_at(self._top, _KERNFS, _ID.pack(id), os.O_PATH)
        except OSError as error:
            # ids are never given twice: what is gone stays so
            return None if error.errno in (errno.ESTALE, errno.ENOENT) else self._walk(id)
        try:
            return printable(os.readlink(syscalls.fd_path(fd)).removesuffix(_DELETED))
        finally:
            os.close(fd)

    def _walk(self, id: int) -> str | None:
        """Without handles: the inode numbers of all groups, looked through once in a while."""
        if time.monotonic() - self._walked >= WALK_EVERY:
            self._walked = time.monotonic()
            for path, _, _, directory in os.fwalk(".", dir_fd=self._top):
                number = os.fstat(directory).st_ino
                if self._paths.get(number) is None and len(self._paths) < LIMIT:
                    self._paths[number] = printable(path.removeprefix(".") or "/")
        return self._paths.get(id)

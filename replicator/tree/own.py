"""Directories of the source that belong to rsyncfs itself: the state directories of daemons on this host.

Takes an open source; gives inodes with their paths. They are never replicated: what a daemon notes about a change would
be a change to note. Found by what they are, not by name, so that they may be moved: the caller's own, the default place
(running or not), and every directory that a running process has locked as its state. Another host's are not seen, nor
one in another place whose daemon is not running.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from replicator import syscalls
from replicator.config import STATE
from replicator.errors import EnvironmentFault
from replicator.host import is_within
from replicator.model import FileId
from replicator.observe.control import NAME
from replicator.tree.exclude import Exclude
from replicator.tree.handles import SourceRoot
from replicator.tree.mount import mount_of

log = logging.getLogger(__name__)

_PATH = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class OwnDirectories:
    """Those that one sender leaves out, since `exclude` knows them."""

    def __init__(self, source: SourceRoot, path: Path, state: Path, exclude: Exclude) -> None:
        """`path`: the source's, as the user named it; `state`: the sender's own."""
        self._source = source
        self._path = path
        self._state = state
        self._exclude = exclude

    def leave_out(self) -> list[FileId]:
        """Leave out those that there are now; returns those that are new. EnvironmentFault if the source is one."""
        found = own_directories(self._source, self._state)
        if self._source.id in found:
            raise EnvironmentFault(
                f"{self._source.path} is the state directory of a daemon: name another with --state, or another source"
            )
        new = [id for id in found if id not in self._exclude.own]
        self._exclude.own.update(found)
        for path in self.paths(new):
            log.info("%s is not replicated: rsyncfs keeps its state there", path)
        return new

    def paths(self, ids: Iterable[FileId] | None = None) -> list[str]:
        """Which (of `ids`) in the source are left out."""
        own = self._exclude.own
        paths = [own[id] for id in (own if ids is None else ids)]
        return [path for path in paths if is_within(Path(path), self._path)]


def own_directories(source: SourceRoot, *states: Path) -> dict[FileId, str]:
    """The inodes of state directories on the source's filesystem, in or out of the source, by path."""
    found: dict[FileId, str] = {}
    for path, fd in _candidates([STATE, *states]):
        try:
            with contextlib.suppress(OSError, KeyError, ValueError):
                _, _, mount_id = syscalls.name_to_handle_at(fd, b"", syscalls.AT_EMPTY_PATH)
                if mount_of(mount_id).kernel_dev == source.kernel_dev:
                    found[source.id_of(fd)] = path
        finally:
            os.close(fd)
    return found


def _candidates(paths: list[Path]) -> Iterator[tuple[str, int]]:
    """Paths with descriptors, which are the caller's to close."""
    for path in paths:
        with contextlib.suppress(OSError):
            yield str(path.resolve()), os.open(path, _PATH)
    for pid, inode in sorted(_locks()):
        with contextlib.suppress(OSError):
            for entry in os.listdir(f"/proc/{pid}/fd"):
                link = f"/proc/{pid}/fd/{entry}"
                with contextlib.suppress(OSError):
                    status = os.stat(link)
                    if status.st_ino == inode and stat.S_ISDIR(status.st_mode) and _is_state(link):
                        yield os.readlink(link), os.open(link, _PATH)


def _locks() -> set[tuple[int, int]]:
    """(process, inode number) of every lock on a whole file."""
    found = set()
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[3] == "WRITE":
            found.add((int(fields[4]), int(fields[5].rpartition(":")[2])))
    return found


def _is_state(link: str) -> bool:
    return stat.S_ISSOCK(os.stat(f"{link}/{NAME}").st_mode)

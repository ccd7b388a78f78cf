"""Control groups of the tests' own, in a hierarchy that is mounted for them.

Takes a scratch directory; gives groups that processes can be started in. Needs root and a kernel with cgroup2. All is
removed at the end.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.filesystems import run, unmount


class Cgroup:
    """One group; `path` is its directory, `name` its path below the mount."""

    def __init__(self, mount: Path, name: str) -> None:
        self.path, self.name = mount / name.lstrip("/"), name
        self.path.mkdir(parents=True)

    @property
    def id(self) -> int:
        """As the kernel numbers it."""
        return self.path.stat().st_ino

    def call(self, *command: str | os.PathLike[str]) -> int:
        """Run a command in it to its end; its process number."""
        with self.start(command) as process:
            assert process.wait(60) == 0
            return process.pid

    def start(self, command: Sequence[str | os.PathLike[str]], **streams: Any) -> subprocess.Popen[bytes]:
        """Start a command in it: a shell joins, and becomes the command. `streams` as Popen has them."""
        script = 'echo $$ > "$0"/cgroup.procs; exec "$@"'
        return subprocess.Popen(["sh", "-euc", script, self.path, *command], **streams)


@contextlib.contextmanager
def hierarchy(directory: Path) -> Iterator[Path]:
    """cgroup2, mounted below `directory`; groups that are left in it are removed at the end."""
    mount = directory / "cgroup2"
    mount.mkdir()
    run("mount", "-t", "cgroup2", "cgroup2", mount)
    try:
        yield mount
    finally:
        unmount(mount)
        mount.rmdir()


@contextlib.contextmanager
def cgroup(mount: Path, name: str) -> Iterator[Cgroup]:
    """A new group; removed afterwards with the parents that only led to it."""
    made = Cgroup(mount, name)
    try:
        yield made
    finally:
        at = made.path
        while at != mount and at.is_dir():
            try:
                at.rmdir()
            except OSError:  # others are in it
                break
            at = at.parent

"""A filesystem on a disk whose power can be cut: a `VolatileDisk` through FUSE and a loop device.

Takes a type and a directory for the platter; gives a mount point. After `cut` the mount is dead; `boot` mounts what the
platter has, as the next start of a machine would. Needs root, nbdfuse, and the mkfs tools. Nothing is left behind.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.deadline import SLOW, eventually
from tests.support.filesystems import is_mounted, make_image, unmount
from tests.support.volatile import VolatileDisk

MIB = 1024 * 1024


class Outlet:
    """A context manager, booted once when it is entered."""

    def __init__(self, fstype: str, directory: Path, seed: int, size: int = 1024 * MIB) -> None:
        self.fstype, self._directory, self._seed = fstype, directory, seed
        self.platter, self.point = directory / "platter", directory / "mount"
        self._served = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.point.mkdir()
        make_image(fstype, self.platter, size)
        self.disk: VolatileDisk | None = None
        self._fuse: subprocess.Popen[bytes] | None = None
        self.boots = 0

    def boot(self) -> None:
        """Power on, and mount."""
        self.boots += 1
        self._served = self._directory / f"served{self.boots}"  # never taken for the one that is dead
        self._served.mkdir()
        self.disk = VolatileDisk(self.platter, self._directory / f"nbd{self.boots}", self._seed + self.boots)
        words = ["nbdfuse", f"{self._served}/disk", "--unix", str(self.disk.socket)]
        self._fuse = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )  # it tells of each error
        eventually(lambda: is_mounted(self._served), 20, "the disk is there")
        eventually(self._mount, 20, "what the disk has is mounted")

    def _mount(self) -> bool:
        """Whether it went well: a loop device on FUSE sometimes cannot read at first."""
        words = ["mount", "-o", "loop", str(self._served / "disk"), str(self.point)]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def cut(self) -> None:
        """The power goes, now; who uses the mount gets errors. They must be gone before `off`."""
        assert self.disk is not None
        self.disk.cut()

    def off(self) -> None:
        """Take the dead filesystem away (or, without a cut, unmount it in peace)."""
        if is_mounted(self.point):
            unmount(self.point)
        if self._fuse is not None:
            if is_mounted(self._served):
                unmount(self._served)
            self._fuse.wait(20 * SLOW)
            self._fuse = None
        if self.disk is not None:
            self.disk.close()
            self.disk = None

    def __enter__(self) -> Outlet:
        try:
            self.boot()
        except BaseException:
            self.off()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.off()

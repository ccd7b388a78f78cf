"""A filesystem with very many small files, for benches.

Takes a directory with room for a sparse image; gives a mounted ext4. Needs root.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILES = 1_000_000
EACH = 1000
"""Files in a directory."""
BYTES = 100
"""In a file."""


def run(*command: str | Path, check: bool = True) -> None:
    subprocess.run(command, check=check, stdout=subprocess.DEVNULL)


class Volume:
    """An ext4 in an image, mounted."""

    def __init__(self, directory: Path, files: int, copy_of: Volume | None = None, size: int = 1 << 30) -> None:
        """With room for `files` small ones and `size` bytes; or a copy of another, which is mounted anew."""
        self.point = directory / "mount"
        self._image = directory / "image"
        self.point.mkdir()
        if copy_of is not None:
            copy_of.forget()
            run("cp", "--sparse=always", "--reflink=auto", copy_of._image, self._image)
            self.mount()
            return
        with self._image.open("wb") as image:
            image.truncate(files * 6000 + size)
        run("mkfs.ext4", "-q", "-F", "-b", "4096", "-N", str(files + files // EACH + 100_000), self._image)
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", "loop,noatime", self._image, self.point)

    def forget(self) -> None:
        """Mount it anew, with nothing of it in memory."""
        run("umount", self.point)
        fd = os.open(self._image, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        self.mount()

    def close(self) -> None:
        if os.path.ismount(self.point):
            run("umount", self.point)


@contextmanager
def volume(parent: Path, files: int) -> Iterator[Volume]:
    with tempfile.TemporaryDirectory(prefix="rsyncfs-bench-", dir=parent) as directory:
        made = Volume(Path(directory), files)
        try:
            yield made
        finally:
            made.close()


def fill(top: Path, files: int, part: int, parts: int) -> None:
    """Make every `parts`th directory."""
    content = bytes(BYTES)
    for number in range(part, -(-files // EACH), parts):
        directory = top / f"{number:06}"
        directory.mkdir()
        within = os.open(directory, os.O_RDONLY)
        for file in range(min(EACH, files - number * EACH)):
            fd = os.open(f"{file:04}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=within)
            os.write(fd, content)
            os.close(fd)
        os.close(within)


def make_files(top: Path, files: int) -> float:
    """Seconds that it took."""
    begun = time.monotonic()
    parts = os.cpu_count() or 1
    workers = [multiprocessing.Process(target=fill, args=(top, files, part, parts)) for part in range(parts)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"making files failed: exit code {worker.exitcode}")
    run("sync", "-f", top)
    return time.monotonic() - begun


@contextmanager
def memory(size: int) -> Iterator[Path]:
    """A directory in memory (tmpfs) with room for so many bytes: for figures in which the disk is to have no part."""
    with tempfile.TemporaryDirectory(prefix="rsyncfs-bench-", dir="/var/tmp") as name:
        run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", name)
        try:
            yield Path(name)
        finally:
            run("umount", name)

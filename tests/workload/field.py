"""The tree that a worker works in: where things are, and what else could be there.

Takes a directory; everything that moves is below `live` in it, what keeps still (donors to copy from, a home for each
worker) in `still`. Choices come from dice and from what is there at the moment; another process may take it away before
it is used, which is an OSError for the caller to bear.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tests.support.operations import DONOR_SIZE, MIB, content

DEPTH = 4
DIRECTORIES = ("alpha", "beta", "gamma", "delta", "epsilon")
FILES = tuple(f"f{number}" for number in range(24))
ODD = ("new\nline", os.fsdecode(b"\xff\xfe not utf-8"), "n" * 255, " ", "...", "-rf", "#", "a.part")
ENTRIES = 2500
"""Names below `live`; where there are more, whole directories go."""
HIGH = 0.75
"""The part of the room at which the largest files are cut down."""


class Field:
    """One worker's view of the tree; all workers of a tree share all but `home`."""

    def __init__(self, top: Path, number: int = 0, outside: Path | None = None) -> None:
        """`outside`: a directory on the same filesystem and not in the tree, for files that leave it for a while."""
        self.top, self.live, self.outside = top, top / "live", outside
        self.number = number
        self.home = top / "still" / f"home{number}"
        self.donor = top / "still" / "donor"
        top.mkdir(parents=True, exist_ok=True)
        self.fstype = _fstype(top)

    def prepare(self) -> None:
        """Make what is missing; for one process, before the others begin."""
        for path in (self.live, self.home):
            path.mkdir(parents=True, exist_ok=True)
        if not self.donor.exists():
            self.donor.write_bytes(content(DONOR_SIZE, 2))
        for name in DIRECTORIES:
            with contextlib.suppress(FileExistsError):  # something else may have that name by now
                (self.live / name).mkdir()

    # -- choices

    def directory(self, dice: Random) -> Path:
        """One that is there; the top ones more often."""
        at = self.live
        for _ in range(DEPTH):
            below = [entry for entry in _entries(at) if entry.is_dir(follow_symlinks=False)]
            if not below or dice.random() < 0.3:
                break
            at = Path(dice.choice(below).path)
        return at

    def entry(self, dice: Random, wanted: Callable[[os.DirEntry[str]], bool] = lambda entry: True) -> Path:
        """A name that is there. FileNotFoundError if three directories have none."""
        for _ in range(3):
            found = [entry for entry in _entries(self.directory(dice)) if wanted(entry)]
            if found:
                return Path(dice.choice(found).path)
        raise FileNotFoundError(errno.ENOENT, "three directories have no such entry", str(self.live))

    def file(self, dice: Random) -> Path:
        """The name of a regular file, made if three directories have none."""
        try:
            return self.entry(dice, lambda entry: entry.is_file(follow_symlinks=False))
        except FileNotFoundError:
            path = self.fresh(dice)
            put(path, content(20_000, dice.randrange(8)))
            return path

    def below(self, dice: Random) -> Path:
        """A directory other than the top ones."""
        return self.entry(dice, lambda entry: entry.is_dir(follow_symlinks=False))

    def fresh(self, dice: Random, names: tuple[str, ...] = FILES) -> Path:
        """A name, perhaps taken, in a directory that is there."""
        if names is FILES and dice.random() < 0.03:
            names = ODD
        return self.directory(dice) / dice.choice(names)

    @contextlib.contextmanager
    def opened(self, dice: Random, *, shrinks: bool = False, maps: bool = False) -> Iterator[tuple[Path, int]]:
        """A regular file and a descriptor of it. Who shortens and who maps files exclude each other."""
        path = self.file(dice)
        fd = _open(path, os.O_RDWR)
        try:
            if shrinks or maps:
                fcntl.flock(fd, fcntl.LOCK_EX if shrinks else fcntl.LOCK_SH)
            yield path, fd
        finally:
            os.close(fd)

    # -- bounds

    def bound(self, room: int, dice: Random) -> bool:
        """Keep within `room` bytes and `ENTRIES` names; whether something had to go."""
        files: dict[tuple[int, int], tuple[int, Path]] = {}
        entries = 0
        for path, info in _walk(self.live):
            entries += 1
            if stat.S_ISREG(info.st_mode):
                files[info.st_dev, info.st_ino] = (info.st_blocks * 512, path)
        total = sum(size for size, _ in files.values())
        if total > room * HIGH:
            for size, path in sorted(files.values(), reverse=True):
                self._empty(path)
                total -= size
                if total <= room * HIGH / 2:
                    break
            return True
        if entries > ENTRIES:
            shutil.rmtree(self.directory(dice) if dice.random() < 0.5 else self.below(dice), ignore_errors=True)
            self.live.mkdir(exist_ok=True)
            return True
        return False

    @staticmethod
    def _empty(path: Path) -> None:
        with contextlib.suppress(OSError):
            put(path, b"", flags=0)


def _open(path: Path, flags: int) -> int:
    """A regular file, whatever else may have come to its name meanwhile."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "is no regular file any more", str(path))
    return fd


def put(path: Path, data: bytes, flags: int = os.O_CREAT) -> None:
    """Make `data` the content of a file, when nobody has it mapped."""
    fd = _open(path, os.O_WRONLY | flags)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.ftruncate(fd, 0)
        os.write(fd, data)
    finally:
        os.close(fd)


def grow(fd: int, size: int) -> None:
    """Make a file at least so long, without data. Never shorter, whatever others make of it meanwhile."""
    if os.fstat(fd).st_size < size:
        os.posix_fallocate(fd, size - 1, 1)


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as found:
        return sorted(found, key=lambda entry: entry.name)


def _walk(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    queue = [top]
    while queue:
        at = queue.pop()
        with contextlib.suppress(OSError):
            for entry in _entries(at):
                with contextlib.suppress(OSError):
                    info = entry.stat(follow_symlinks=False)
                    yield Path(entry.path), info
                    if stat.S_ISDIR(info.st_mode):
                        queue.append(Path(entry.path))


def _fstype(path: Path) -> str:
    words = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(path)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


LONG = 8 * MIB
"""The longest write."""

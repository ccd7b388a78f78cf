"""Fresh filesystems for the tests: ext4, XFS and btrfs on loop devices, and tmpfs.

Takes a type and a directory to work in; gives the mount point; unmounts, detaches and removes the image at the end,
also when the body fails. Needs root and the mkfs tools. Images are sparse: they cost what is written to them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.deadline import SLOW

FILESYSTEMS = ("ext4", "xfs", "btrfs", "tmpfs")
"""Every type that the tests run on."""

GIB = 1024**3

# 4 KiB blocks always, so that a test can say what "rounded to filesystem blocks" is.
MKFS: dict[str, tuple[str, ...]] = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-b", "4096"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-m", "reflink=1"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}


def run(*command: str | os.PathLike[str]) -> str:
    """Run a command to its end and return its output. AssertionError, with what it printed, if it fails."""
    done = subprocess.run([os.fspath(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: exit {done.returncode}: {done.stderr or done.stdout}"
    return done.stdout


def make_image(fstype: str, image: Path, size: int = 2 * GIB, mkfs: Sequence[str] = ()) -> None:
    """Make a sparse file of `size` bytes holding an empty filesystem. XFS wants at least 300 MiB, btrfs 110.

    `mkfs` are further options of its mkfs.
    """
    with image.open("wb") as file:
        file.truncate(size)
    run(*MKFS[fstype], *mkfs, image)


def is_mounted(point: Path) -> bool:
    """Whether something is mounted there, be it a filesystem that answers nothing but errors."""
    where = os.fsencode(point).replace(b"\\", rb"\134").replace(b" ", rb"\040")
    return any(line.split(b" ")[4] == where for line in Path("/proc/self/mountinfo").read_bytes().splitlines())


def unmount(point: Path, timeout: float = 10.0) -> None:
    """Unmount, waiting for those who still use it; after `timeout` seconds detach it lazily, so nothing is left."""
    timeout *= SLOW
    deadline = time.monotonic() + timeout
    while subprocess.run(["umount", point], capture_output=True, check=False).returncode != 0:
        if not is_mounted(point):
            return
        if time.monotonic() > deadline:
            run("umount", "--lazy", point)
            raise AssertionError(f"{point} was still in use after {timeout:g} s; detached it lazily")
        time.sleep(0.05)


@contextlib.contextmanager
def filesystem(
    fstype: str, directory: Path, size: int = 2 * GIB, options: Sequence[str] = (), mkfs: Sequence[str] = ()
) -> Iterator[Path]:
    """A new, empty, mounted filesystem below `directory` (made if missing); `options` are those of mount."""
    point = directory / "mount"
    point.mkdir(parents=True)
    image = directory / "image"
    if fstype == "tmpfs":
        run("mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "tmpfs", point)
    else:
        make_image(fstype, image, size, mkfs)
        run("mount", "-o", ",".join(("loop", *options)), image, point)
    try:
        yield point
    finally:
        unmount(point)
        point.rmdir()
        image.unlink(missing_ok=True)

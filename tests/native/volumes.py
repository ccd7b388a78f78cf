"""The filesystems that identities and names are tested on: those of the product, and a btrfs subvolume by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.support.filesystems import filesystem, run, unmount

VOLUMES = ("ext4", "xfs", "btrfs", "btrfs subvolume", "tmpfs")

SIZE = 512 * 1024 * 1024
"""Bytes; XFS wants at least 300 MiB."""


@contextlib.contextmanager
def volume(name: str, directory: Path) -> Iterator[Path]:
    """A mounted filesystem of that kind below `directory`, or a subvolume named "data" mounted in its place."""
    with filesystem(name.split()[0], directory, size=SIZE) as point:
        if name == "btrfs subvolume":
            run("btrfs", "subvolume", "create", point / "data")
            unmount(point)
            run("mount", "-o", "loop,subvol=data", directory / "image", point)
        yield point

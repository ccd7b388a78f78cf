"""This host: which boot it is, and whether two directories that two processes know lie one inside the other."""

from __future__ import annotations

from pathlib import Path

Ancestors = tuple[tuple[int, int], ...]
"""(st_dev, st_ino) of a directory, then of all above it."""


def ancestors(path: Path) -> Ancestors:
    """Of a directory that exists, symbolic links resolved. OSError."""
    resolved = path.resolve()
    chain = []
    for directory in (resolved, *resolved.parents):
        status = directory.stat()
        chain.append((status.st_dev, status.st_ino))
    return tuple(chain)


def nested(one: Ancestors, other: Ancestors) -> bool:
    """Whether one is the other, or inside it. Neither may be empty."""
    return one[0] in other or other[0] in one


def is_within(inner: Path, outer: Path) -> bool:
    """Whether one path leads below (or to) the other, links resolved."""
    return inner.resolve().is_relative_to(outer.resolve())


def boot_id() -> str:
    """What tells this running kernel from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

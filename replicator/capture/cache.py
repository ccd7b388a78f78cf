"""The cache directory: what took long to find out about this kernel, for the next start.

Takes places and bytes. What is kept there is complete or absent, and believed only if nobody but root could have
written it. A cache that cannot be written only costs time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
from pathlib import Path

CACHE = Path("/var/cache/rsyncfs")
KEPT = 24
"""Of each kind; the oldest make room for new ones."""

_log = logging.getLogger(__name__)


def place(cache: Path, kind: str, digest: str) -> Path:
    """Where something of a kind is kept, under a digest of all that went into it."""
    return cache / f"{kind}-{digest}"


def kept(place: Path) -> bytes | None:
    """What is there; None if there is nothing, or it is not to be trusted."""
    try:
        with place.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
            return file.read()
    except OSError as fault:
        _log.debug("%s cannot be used: %s", place, fault)
        return None


def keep(place: Path, data: bytes) -> None:
    """Put it beside its place, sync it, rename it."""
    kind = place.name.partition("-")[0]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{kind}-", dir=place.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).rename(place)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
        every = sorted(place.parent.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for old in every[KEPT:]:
            old.unlink(missing_ok=True)
    except OSError as fault:
        _log.debug("%s is not kept: %s", place, fault)

"""Chooses how the inodes of a source are found: the fast way of its filesystem, or a walk."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Final

from replicator.errors import EnvironmentFault, UsageError
from replicator.model import FileId
from replicator.scan.btrfs import BtrfsScan
from replicator.scan.ext4 import Ext4Scan
from replicator.scan.row import Scan
from replicator.scan.walk import WalkScan
from replicator.scan.xfs import XfsScan
from replicator.tree.handles import SourceRoot

WAYS: Final = ("auto", "walk")
"""What --scan takes."""

log = logging.getLogger(__name__)


def check_way(how: str) -> None:
    """UsageError if there is no such way."""
    if how not in WAYS:
        raise UsageError(f"there is no way to scan called {how!r}: use one of {', '.join(WAYS)}")


def fetch_ahead(source: SourceRoot, how: str) -> None:
    """Have the disk begin with what a scan will read, where that is known before."""
    if how == "auto" and source.fstype == "ext4":
        with contextlib.suppress(EnvironmentFault, OSError):  # the scan will say it
            Ext4Scan(source).fetch_ahead()


def scan(
    source: SourceRoot,
    how: str = "auto",
    since: str | None = None,
    members: Callable[[], Iterator[tuple[FileId, ...]]] | None = None,
) -> Scan:
    """A scan of the source, which begins now. Hooks are attached and syncfs(2) was called before.

    `how` is "auto", which takes a walk where nothing faster is to be had and says so in the log, or "walk". `since` is
    the `mark` of an earlier scan. `members` would give the ids that are known to be in the tree; no way needs them yet.
    UsageError for an unknown way; EnvironmentFault while it is iterated, when not all can be read.
    """
    check_way(how)
    if how == "auto":
        try:
            if source.fstype == "ext4":
                return Ext4Scan(source)
            if source.fstype == "xfs":
                return XfsScan(source)
            if source.fstype == "btrfs":
                return BtrfsScan(source, since)
        except EnvironmentFault as fault:
            log.warning("%s Walking the tree instead.", fault)
    return WalkScan(source)

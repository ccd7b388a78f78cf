"""The index's stamps, read ahead and changed meanwhile."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from replicator.model import FileId, Kind, Slot
from replicator.scan import INODE
from replicator.tree.stamps import Differences, Stamp
from replicator.tree.store import IndexStore, Told

ROOT = FileId(0, 0, 2, 1)
FILE = FileId(0, 0, 300, 7)


def told(ctime: int) -> Told:
    return Told(slots={Slot(ROOT, b"file"): (FILE, Kind.FILE)}, stamps={FILE: Stamp(10, 5, ctime)})


def inode(ctime: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    rows = np.zeros(1, INODE)
    rows[["ino", "gen", "mode", "size", "mtime", "ctime"]] = (FILE.ino, FILE.gen, 0o100644, 10, 5, ctime)
    return rows


def test_stamps_that_were_read_ahead_are_those_of_the_index_still(scratch: Path) -> None:
    with contextlib.closing(IndexStore(scratch / "index")) as store:
        store.settle(ROOT)
        store.commit([told(1)], {})
        store.preload()
        assert Differences(store.stamps(0)).changed(inode(1)) == []
        store.preload()
        store.commit([told(2)], {})
        assert Differences(store.stamps(0)).changed(inode(2)) == [], "those from before the commit were given"
        assert Differences(store.stamps(0)).changed(inode(1)) == [FILE]

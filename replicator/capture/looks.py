"""The names that a sensor's records tell, as the looks that fanotify's events are turned into.

Takes drained records with their names; gives looks, and the records that tell of bytes. Pure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from replicator.capture.event import EventFlag, EventKind, Events
from replicator.capture.names import InodeLook, ListLook, Look, MovedLook, SlotLook
from replicator.model import FileId, Slot

_NAME: Final = int(EventKind.NAME)
_MOVED: Final = int(EventFlag.MOVED)


class Timed(NamedTuple):
    """A look, and when what led to it happened (CLOCK_MONOTONIC, ns)."""

    since: int
    look: Look


def parted(records: Events, names: list[bytes]) -> tuple[Events, list[Timed]]:
    """The records of bytes, and the looks of those with a name; `names` are theirs, in order."""
    if not names:
        return records, []
    named = records["kind"] == _NAME
    looks: list[Timed] = []
    for record, name in zip(records[named].tolist(), names, strict=True):
        ts, ino, off, length, root, _, gen, _, _, fs, flags, _ = record
        parent = FileId(fs, root, ino, gen)
        target = FileId(fs, root, off, length & 0xFFFFFFFF) if off else None
        if target is not None and flags & _MOVED:
            # its attributes too: XFS gives a directory that changed places a new mtime
            looks += (Timed(ts, MovedLook(target)), Timed(ts, InodeLook(target)))
        looks.append(Timed(ts, SlotLook(Slot(parent, name), target) if name else ListLook(parent)))
        looks.append(Timed(ts, InodeLook(parent)))
    return records[~named], looks

"""Mending what a sweep found: the replica is told again, by the ordinary way, whatever differs.

Nothing is removed here. A name that only the replica has is compared with the source again, and looked at there, before
the receiver is told that the source has none.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from replicator.model import FileId
from replicator.source.outbox import Outbox
from replicator.verify.found import CONTENT, EXTRA, MISSING, UNREADABLE, Found

_BYTES = (CONTENT, "size")
_ALL = (MISSING, "kind", UNREADABLE)


def mend(outbox: Outbox, differences: Iterable[Found]) -> None:
    """Owe what differs; a barrier tells when that is durable."""
    now = time.monotonic_ns()
    for found in differences:
        if not outbox.index.is_member(found.id):
            continue
        if found.kind == EXTRA:
            outbox.compare_names(found.id, now)
        elif found.slot is not None:
            outbox.resolver.look(found.slot, now, force=True)
        elif found.kind in _ALL:
            outbox.owe_whole(found.id, now)
        elif found.kind in _BYTES:
            outbox.doubt(found.id, now)
        else:
            outbox.table.mark(found.id, now)


def concerned(outbox: Outbox, differences: Iterable[Found]) -> set[FileId]:
    """The inodes to look at once more when all is mended."""
    ids = {found.id for found in differences}
    for found in differences:
        named = outbox.index.get(found.slot) if found.slot is not None else None
        if named is not None:
            ids.add(named)
    return ids

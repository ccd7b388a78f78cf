"""Mending what a sweep found: the replica is told again, by the ordinary way, what differs; then that is compared anew.

Nothing is removed here. A name that only the replica has is compared with the source again, and looked at there, before
the receiver is told that the source has none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from replicator.model import FileId
from replicator.source.outbox import Outbox
from replicator.verify.found import CONTENT, EXTRA, MISSING, UNREADABLE, Found
from replicator.verify.sweep import Sweep

if TYPE_CHECKING:
    from replicator.sender import Sender

_BYTES = (CONTENT, "size")
_ALL = (MISSING, "kind", UNREADABLE)


class Repair:
    """Of some differences. `over` is called once, with those that are still there, or with why it stopped."""

    def __init__(
        self, sender: Sender, differences: Sequence[Found], over: Callable[[list[Found], str | None], None]
    ) -> None:
        self._sender = sender
        self._differences = differences
        self._over = over
        self._left: list[Found] = []
        self._sweep: Sweep | None = None
        self._stopped = False

    def start(self) -> None:
        """Owe what differs, and wait until it is durable."""
        _owe(self._sender.outbox, self._differences)
        self._sender.barriers.add(self._sender.sensor.produced(), self._sender.turn, self._durable)

    def turn(self) -> None:
        """Go on; to be called now and then."""
        if self._sweep is not None:
            self._sweep.turn()

    def stop(self) -> None:
        """Compare no more, and call nobody; what is owed stays owed."""
        self._stopped = True
        if self._sweep is not None:
            self._sweep.stop()

    @property
    def unsettled(self) -> int:
        """Inodes that were written again whenever they were to be compared."""
        return self._sweep.unsettled if self._sweep is not None else 0

    def _durable(self) -> None:
        if not self._stopped:
            ids = _concerned(self._sender.outbox, self._differences)
            self._sweep = Sweep(self._sender, ids, self._left.append, lambda error: self._over(self._left, error))
            self._sweep.turn()


def _owe(outbox: Outbox, differences: Sequence[Found]) -> None:
    now = time.monotonic_ns()
    for found in differences:
        if not outbox.index.is_member(found.id):
            continue
        if found.kind == EXTRA:
            outbox.unlisted.add(found.id, now)
        elif found.slot is not None:
            outbox.resolver.look(found.slot, now, force=True)
        elif found.kind in _ALL:
            outbox.debts.whole(found.id, now)
        elif found.kind in _BYTES:
            outbox.suspicion.doubt(found.id, now)
        else:
            outbox.table.mark(found.id, now)


def _concerned(outbox: Outbox, differences: Sequence[Found]) -> set[FileId]:
    """The inodes to look at once more when all is mended."""
    ids = {found.id for found in differences}
    for found in differences:
        named = outbox.index.get(found.slot) if found.slot is not None else None
        if named is not None:
            ids.add(named)
    return ids

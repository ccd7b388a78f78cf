"""`verify` and `verify --repair`: a sweep over everything, told to a caller line by line.

With repair, what differs is mended when all has been compared; then that is compared once more, and each difference is
told as mended, or as still there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from replicator.observe.control import Caller
from replicator.verify.found import Found
from replicator.verify.repair import Repair
from replicator.verify.sweep import Sweep

if TYPE_CHECKING:
    from replicator.sender import Sender

TOLD_EVERY = 1.0
"""Seconds between two lines about how far it is."""
MENDED = 100_000
"""Differences that are mended by one run; more are told, and left to the next."""


class Verification:
    """One run for one caller. `over` is called once, when the last was answered."""

    def __init__(self, sender: Sender, caller: Caller, over: Callable[[], None], *, repair: bool = False) -> None:
        self._sender = sender
        self._caller = caller
        self._over = over
        self._repair = repair
        self._told: set[tuple[str, str]] = set()
        self._differences: list[Found] = []
        self._progressed = time.monotonic()
        self._sweep = Sweep(sender, sender.index.members(), self._found, self._compared)
        self._mending: Repair | None = None
        self._ended = False

    def turn(self) -> None:
        """Go on; to be called now and then, first to begin."""
        if self._ended:
            return
        if self._caller.gone:
            self._sweep.stop()
            if self._mending is not None:
                self._mending.stop()
            self._end()
            return
        if self._mending is not None:
            self._mending.turn()
            return
        now = time.monotonic()
        if now - self._progressed >= TOLD_EVERY:
            self._progressed = now
            sweep = self._sweep
            so_far = {"files": sweep.files, "of": len(self._sender.index), "bytes": sweep.bytes}
            self._caller.answer({"progress": so_far}, done=False)
        self._sweep.turn()

    def _found(self, found: Found) -> None:
        told = found.tree(self._sender.index)
        key = (found.kind, told["path"])
        if key not in self._told:  # an inode that is missing, and its name that is: one line
            self._told.add(key)
            self._sender.metrics.verify_differences.add()
            self._caller.answer(told, done=False)
        if self._repair and len(self._differences) < MENDED:
            self._differences.append(found)

    def _compared(self, error: str | None) -> None:
        if error is not None:
            self._finish({"error": error})
        elif self._repair and self._differences:
            self._mending = Repair(self._sender, self._differences, self._mended)
            self._mending.start()
        else:
            self._finish(self._summary())

    def _mended(self, left: list[Found], error: str | None) -> None:
        if error is not None:
            self._finish({"error": error})
            return
        index = self._sender.index
        still = {(found.kind, found.path(index)) for found in left}
        was = {(found.kind, found.path(index)) for found in self._differences}
        for kind, path in sorted(was | still):
            self._caller.answer({"mended": (kind, path) not in still, "kind": kind, "path": path}, done=False)
        unsure = self._mending.unsettled if self._mending is not None else 0
        untried = len(self._told - was)
        mended = {"mended": len(was - still), "left": len(still) + untried, "unsure": unsure}
        self._finish(self._summary() | mended)

    def _summary(self) -> dict[str, Any]:
        sweep = self._sweep
        return {
            "identical": not self._told,
            "different": len(self._told),
            "unsettled": sweep.unsettled,
            "files": sweep.files,
            "bytes": sweep.bytes,
        }

    def _finish(self, answer: dict[str, Any]) -> None:
        self._caller.answer(answer)
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._over()

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
from replicator.verify.repair import concerned, mend
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
        self._count = 0
        self._still: set[tuple[str, str]] = set()
        self._progressed = time.monotonic()
        self._sweep: Sweep | None = None
        self._first: Sweep | None = None

    def start(self) -> None:
        """Begin."""
        self._first = self._sweep = Sweep(self._sender, self._sender.index.members(), self._found, self._compared)
        self._sweep.turn()

    def turn(self) -> None:
        """Go on; to be called now and then."""
        if self._caller.gone:
            if self._sweep is not None:
                self._sweep.stop()
                self._sweep = None
                self._over()
            return
        if self._sweep is not None:
            now = time.monotonic()
            if now - self._progressed >= TOLD_EVERY:
                self._progressed = now
                sweep = self._sweep
                self._caller.answer(
                    {"progress": {"files": sweep.files, "of": sweep.total, "bytes": sweep.bytes}}, done=False
                )
            self._sweep.turn()

    def _found(self, found: Found) -> None:
        told = found.tree(self._sender.index)
        # An inode that is missing, and its name that is: one line.
        key = (found.kind, told["path"])
        if key not in self._told:
            self._told.add(key)
            self._count += 1
            self._sender.metrics.verify_differences.add()
            self._caller.answer(told, done=False)
        if self._repair and len(self._differences) < MENDED:
            self._differences.append(found)

    def _compared(self, error: str | None) -> None:
        if error is not None:
            self._finish({"error": error})
        elif self._repair and self._differences:
            self._sweep = None
            mend(self._sender.outbox, self._differences)
            self._sender.barriers.add(self._sender.sensor.produced(), self._sender.turn, self._mended)
        else:
            self._finish(self._summary())

    def _mended(self) -> None:
        if self._caller.gone:
            self._over()
            return
        ids = concerned(self._sender.outbox, self._differences)
        self._sweep = Sweep(self._sender, ids, self._still_found, self._compared_again)
        self._sweep.turn()

    def _still_found(self, found: Found) -> None:
        self._still.add((found.kind, found.path(self._sender.index)))

    def _compared_again(self, error: str | None) -> None:
        if error is not None:
            self._finish({"error": error})
            return
        lines = {(found.kind, found.path(self._sender.index)) for found in self._differences}
        for kind, path in sorted(lines):
            self._caller.answer({"mended": (kind, path) not in self._still, "kind": kind, "path": path}, done=False)
        again = self._sweep
        unsettled = again.unsettled if again is not None else 0
        left = len(self._still)
        self._finish(self._summary() | {"mended": len(lines - self._still), "left": left, "unsure": unsettled})

    def _summary(self) -> dict[str, Any]:
        sweep = self._first
        assert sweep is not None
        return {
            "identical": self._count == 0,
            "different": self._count,
            "unsettled": sweep.unsettled,
            "files": sweep.files,
            "bytes": sweep.bytes,
        }

    def _finish(self, answer: dict[str, Any]) -> None:
        self._sweep = None
        self._caller.answer(answer)
        self._over()

"""How far the first sync is, on stderr: a live line on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

log = logging.getLogger(__name__)

EVERY_LIVE = 0.1
EVERY_LINE = 5.0


class Progress:
    """Shows phases until `close`; after that nothing."""

    def __init__(self) -> None:
        self._started = self._shown = time.monotonic()
        self._bar: Bar | None = None
        self._closed = False
        if sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task("connecting", total=None)
            self._bar.start()

    def show(self, phase: str, found: int, dirty: int, owed: int) -> None:
        """`found` inodes so far, `dirty` of them still to be read, `owed` things not durable yet."""
        if self._closed:
            return
        now = time.monotonic()
        if now - self._shown < (EVERY_LIVE if self._bar else EVERY_LINE):
            return
        self._shown = now
        done = max(0, found - dirty)
        if self._bar is not None:
            total = found if phase != "connecting" else None
            self._bar.update(self._task, description=f"first sync: {phase}", total=total, completed=done)
            self._bar.refresh()
        elif phase != "connecting":
            log.info("first sync, %s: %d of %d files read, %d changes not durable yet", phase, done, found, owed)

    def close(self) -> None:
        """The first sync is over, or the process ends."""
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._bar.stop()


def _bar() -> Bar:
    """For a terminal; a service does not pay for what draws it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
    )

"""Whose turn it is, of tests that several processes run at the same time (pytest-xdist).

Takes whether a test is to be alone; gives a context. Who wants to be alone is not starved: while it waits, nobody else
begins. Without other processes there is nothing to wait for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Wait until this test may begin; others may not, or (`alone`) must not, run at the same time."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        yield
        return
    place = Path(tempfile.gettempdir())
    with (place / f"rsyncfs-gate-{run}").open("w") as gate, (place / f"rsyncfs-turn-{run}").open("w") as running:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield

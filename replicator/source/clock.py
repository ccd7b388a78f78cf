"""The kernel's clock for change times, and whether it runs evenly.

Takes two clocks; tells the time of day and whether that was set not long ago: then a file's change time says nothing
about its age. Adjusting a clock slowly is not setting it. Pure.
"""

from __future__ import annotations

import time
from collections.abc import Callable

NOTICED = 5_000_000
"""A difference from the steady clock (ns) that is no inaccuracy of reading both."""
_TRIES = 10


class WallClock:
    """ns since the epoch; `even` is about the last call."""

    def __init__(
        self, wall: Callable[[], int] = time.time_ns, steady: Callable[[], int] = time.monotonic_ns, rest: int = 0
    ) -> None:
        """`rest`: for so many ns after it was set the clock does not count as running evenly."""
        self._wall = wall
        self._steady = steady
        self._rest = rest
        now, steady_now = self._both()
        self._offset = now - steady_now
        self._set: int | None = None
        self.even = True
        """Whether it has not been set, as far as was noticed, since `rest` ns before the last call."""

    def __call__(self) -> int:
        """The time of day."""
        now, steady = self._both()
        offset = now - steady
        if abs(offset - self._offset) > NOTICED:
            self._set = steady
        self._offset = offset
        self.even = self._set is None or steady - self._set > self._rest
        return now

    def _both(self) -> tuple[int, int]:
        """Both clocks at one moment: whoever is preempted between two readings would find that one was set."""
        for _ in range(_TRIES):
            before, now, steady = self._steady(), self._wall(), self._steady()
            if steady - before < NOTICED:
                break
        return now, steady

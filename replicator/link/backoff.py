"""How long to wait before the next attempt. No I/O; chance is injected."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Waits that double from `first` to `cap` seconds, each drawn from its upper half, so that many senders that lost
    one receiver do not return in step."""

    def __init__(self, first: float = 0.1, cap: float = 5.0, chance: Callable[[], float] = random.random) -> None:
        self._first = first
        self._cap = cap
        self._chance = chance
        self._attempts = 0

    @property
    def attempts(self) -> int:
        """Since the last success."""
        return self._attempts

    def next(self) -> float:
        """Note a failure; seconds to wait."""
        # The exponent is bounded so that a peer that is away for months does not overflow a float.
        ceiling = min(self._cap, self._first * 2.0 ** min(self._attempts, 64))
        self._attempts += 1
        return ceiling * (0.5 + 0.5 * self._chance())

    def reset(self) -> None:
        """Note a success, or a reason to expect one (a path came back)."""
        self._attempts = 0

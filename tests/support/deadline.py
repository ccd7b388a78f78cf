"""Polling with a deadline, so that no test sleeps blindly.

Takes a question and a limit in seconds, gives the first true answer. Promises an AssertionError that carries the last
answer when the limit passes. The environment variable RSYNCFS_TEST_SLOW is how many times slower than an ordinary host
this machine is: limits grow by that factor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

SLOW = max(1.0, float(os.environ.get("RSYNCFS_TEST_SLOW", "1")))


def eventually(ask: Callable[[], Answer], timeout: float = 10.0, what: str = "", every: float = 0.02) -> Answer:
    """Ask until the answer is true and return it. AssertionError after `timeout` seconds of an ordinary host."""
    timeout *= SLOW
    deadline = time.monotonic() + timeout
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or ask!r}; the last answer was {answer!r}")
        time.sleep(every)

"""Calls that do not return are counted once each, whichever process looks."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest

from replicator.capture import calls
from replicator.capture.calls import OVERDUE, Calls
from replicator.capture.maps import Map
from replicator.capture.notebook import CALLS

SECOND = 1_000_000_000


class Kernel:
    """The map, and the clock."""

    def __init__(self) -> None:
        self.now = 100 * SECOND
        self.values: dict[bytes, bytes] = {}
        self.note: Any = np.zeros(1, CALLS)[0]

    def call(self, function: int, thread: int | None = None) -> None:
        thread = os.getpid() if thread is None else thread
        self.values[struct.pack("=QQ", thread, function)] = struct.pack("=7Q", *(0,) * 6, self.now)

    def keys(self) -> Iterator[bytes]:
        return iter([*self.values, *self.values])  # some may come twice

    def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def remove(self, key: bytes) -> bool:
        return self.values.pop(key, None) is not None

    def calls(self) -> Calls:
        return Calls(cast(Map, self), self.note)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(time, "monotonic_ns", lambda: made.now)
    return made


def test_a_call_is_counted_when_it_is_overdue_and_never_again(kernel: Kernel) -> None:
    one = kernel.calls()
    kernel.call(1)
    for seconds, count in ((0, 0), (9, 0), (2, 1), (2, 1), (60, 1)):
        kernel.now += seconds * SECOND
        assert one.overdue() == count
    kernel.call(2)
    kernel.now += OVERDUE + SECOND
    assert one.overdue() == 2
    assert len(kernel.values) == 2


def test_the_next_process_goes_on_counting(kernel: Kernel) -> None:
    kernel.call(1)
    kernel.now += OVERDUE + SECOND
    assert kernel.calls().overdue() == 1
    assert kernel.calls().overdue() == 1
    kernel.call(2)
    kernel.now += OVERDUE + SECOND
    again = kernel.calls()
    assert again.overdue() == 2
    kernel.now += 2 * SECOND
    assert again.overdue() == 2


def test_a_count_that_was_cut_short_is_made_once_more(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.call(1)
    kernel.now += OVERDUE + SECOND
    looked = int(kernel.note["looked"])
    kernel.calls().overdue()
    kernel.note["looked"] = looked
    assert kernel.calls().overdue() == 2


def test_calls_of_threads_that_are_no_more_are_counted_and_forgotten(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_thread_lives", lambda key: False)
    kernel.call(1)
    kernel.now += OVERDUE + SECOND
    assert kernel.calls().overdue() == 1
    assert not kernel.values


def test_looks_are_a_second_apart(kernel: Kernel) -> None:
    one = kernel.calls()
    one.overdue()
    kernel.call(1)
    kernel.now += SECOND // 2
    kernel.values[next(iter(kernel.values))] = struct.pack("=7Q", *(0,) * 6, 1)
    assert one.overdue() == 0
    kernel.now += SECOND
    assert one.overdue() == 0  # it is older than the last look, and was counted by that, had it been there

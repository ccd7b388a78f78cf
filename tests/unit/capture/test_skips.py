"""Skipped programs: what their spares told is not taken for lost, however the calls go on while one looks."""

from __future__ import annotations

import logging
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.capture.layout import FunctionHook, Hook
from replicator.capture.load import PROBES, TRACEPOINT, TRAMPOLINES, Loaded, Program
from replicator.capture.skips import Skips
from replicator.capture.source import AnyHook

TRACED = Hook("ext4", "ext4_da_write_end", ("struct inode *",))
CALLED = FunctionHook("vfs_write", "any", "vfs_write", ("struct file *",), entry=False)
PROGRAMS = 3
Call = tuple[bool, bool, bool]
"""Which of the programs are skipped for it."""


class Kernel:
    """Three programs at one hook, and the calls that they are skipped for: one goes by before each look."""

    def __init__(self, hook: AnyHook, mechanism: str, calls: list[Call], probes: bool = False) -> None:
        self.loaded = [Loaded(hook, mechanism, number, number) for number in range(PROGRAMS)]
        self.coming = list(calls)
        self.skipped = [0] * PROGRAMS
        self.told = self.lost = 0
        self.backed: list[AnyHook] = []
        self._probes = probes

    def _go_on(self) -> None:
        if not self.coming:
            return
        call = self.coming.pop(0)
        for number, skipped in enumerate(call):
            self.skipped[number] += skipped
        self.lost += all(call)
        self.told += call[0] and not all(call)

    def times(self, program: int) -> int:
        self._go_on()
        return self.skipped[program]

    def spared(self, hook: AnyHook) -> int:
        assert hook == self.loaded[0].hook
        self._go_on()
        return self.told

    def back(self, hook: FunctionHook) -> bool:
        self.backed.append(hook)
        return self._probes

    def skips(self) -> Skips:
        return Skips(cast(Program, self), self.times, self.spared)


def call(kernel: Kernel, call: Call) -> None:
    """One that goes by while nobody looks."""
    kernel.coming.insert(0, call)
    kernel._go_on()


calls = st.tuples(st.booleans(), st.booleans(), st.booleans())
mended = calls.filter(lambda skipped: not all(skipped))


@given(st.lists(calls, max_size=20), st.lists(mended, max_size=6))
def test_what_a_spare_told_meanwhile_is_not_lost(before: list[Call], meanwhile: list[Call]) -> None:
    kernel = Kernel(TRACED, TRACEPOINT, before)
    while kernel.coming:
        kernel._go_on()
    kernel.coming = list(meanwhile)
    assert kernel.skips().total() == kernel.lost


@given(st.lists(calls, max_size=20), st.lists(calls, max_size=40))
def test_in_the_thickest_storm_rather_too_many_than_too_few(before: list[Call], meanwhile: list[Call]) -> None:
    kernel = Kernel(TRACED, TRACEPOINT, before)
    while kernel.coming:
        kernel._go_on()
    lost = kernel.lost
    kernel.coming = list(meanwhile)
    assert kernel.skips().total() >= lost


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said so far."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("probes", [False, True])
def test_a_function_that_lost_a_call_gets_probes_once(caplog: pytest.LogCaptureFixture, probes: bool) -> None:
    kernel = Kernel(CALLED, TRAMPOLINES[False], [], probes)
    skips = kernel.skips()
    call(kernel, (True, True, False))
    assert skips.total() == 0
    assert not kernel.backed
    call(kernel, (True, True, True))
    assert skips.total() == 1
    call(kernel, (True, True, True))
    assert skips.total() == 2
    assert kernel.backed == [CALLED]
    assert warnings(caplog) == [
        "the kernel skips programs at vfs_write" + (": from now on probes see it as well" if probes else "")
    ]


def test_a_tracepoint_gets_none(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel(TRACED, TRACEPOINT, [], True)
    skips = kernel.skips()
    call(kernel, (True, True, True))
    assert skips.total() == 1
    assert not kernel.backed
    assert warnings(caplog) == ["the kernel skips programs at ext4_da_write_end"]


def test_probes_leave_no_notes_and_count_as_they_are() -> None:
    kernel = Kernel(CALLED, PROBES[False], [])
    skips = kernel.skips()
    call(kernel, (True, True, True))
    kernel.told = 1
    assert skips.total() == 1

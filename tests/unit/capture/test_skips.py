"""Skipped programs: what their spares told is not taken for lost, however the calls go on while one looks."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from replicator.capture.layout import FunctionHook, Hook
from replicator.capture.load import PROBES, TRACEPOINT, TRAMPOLINES, Loaded, Program
from replicator.capture.notebook import SKIPS, SKIPS_NOTES
from replicator.capture.skips import UNDER_WAY, Skips
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

    def place(self, hook: AnyHook) -> int:
        assert hook == self.loaded[0].hook
        return 0

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


@dataclass
class Going:
    """A call that is under way."""

    counts: list[int]
    """What is to be counted for it yet: a program that was skipped, or TOLD."""
    lost: bool
    begun: int | None = None
    """How many losses had been found when it came to the programs; what was found since covers it, too."""


TOLD = -1
PAUSE = 99


class Slow(Kernel):
    """Calls that take time: between the counts of the kernel and of a spare others go on, and looks begin."""

    def __init__(self, steps: list[int]) -> None:
        """`steps`: which of the calls that are under way goes on before each count is read."""
        super().__init__(TRACED, TRACEPOINT, [])
        self.now = 0.0
        self.under_way: list[Going] = []
        self.uncovered = False
        self._found = 0
        self._steps = iter(steps)

    def begin(self, call: Call) -> None:
        """A new call, of which nothing is counted yet."""
        counts: list[int] = []
        for number, skipped in enumerate(call):
            if skipped:
                counts.append(number)
            elif number and all(call[:number]):
                counts.append(TOLD)
        self.under_way.append(Going(counts, all(call)))

    def step(self, which: int) -> None:
        """One call goes on: it is counted once more, or is over."""
        if not -1 <= which < len(self.under_way) or not self.under_way:
            return
        call = self.under_way[which]
        if call.begun is None:
            call.begun = self._found
        if not call.counts:
            del self.under_way[which]
        elif (what := call.counts.pop(0)) == TOLD:
            self.told += 1
        else:
            self.skipped[what] += 1
            if call.lost and not call.counts and call.begun == self._found:
                self.uncovered = True

    def finish(self, which: int) -> None:
        """One call goes on to its end."""
        there = len(self.under_way)
        while len(self.under_way) == there:
            self.step(which)

    def found(self) -> None:
        """A look ended that says that something was lost: everything is looked at."""
        self._found += 1
        self.uncovered = False

    def _go_on(self) -> None:
        self.step(next(self._steps, PAUSE))

    def skips(self, notes: Any = None) -> Skips:
        return Skips(cast(Program, self), self.times, self.spared, lambda: self.now, notes)


class Killed(Exception):
    """The process ended there."""


class Notes:
    """Notes that stay, of a process that is killed when it wants to store the number `last` + 1."""

    def __init__(self, kept: Any, last: int) -> None:
        self.kept, self.last = kept, last

    def __getitem__(self, at: Any) -> Any:
        found = self.kept[at]
        return Notes(found, self.last) if isinstance(at, int) else found

    def __setitem__(self, at: str, value: Any) -> None:
        if self.last == 0:
            raise Killed
        self.last -= 1
        self.kept[at] = value


LOST, MENDED, UNNOTICED = (True, True, True), (True, False, False), (False, True, True)
Act = tuple[str, Any]
LOOK: Act = ("look", None)
REST: Act = ("rest", None)
some_call = st.one_of(st.sampled_from([LOST, MENDED, UNNOTICED]), calls)
acts = st.one_of(
    some_call.map(lambda call: ("begin", call)),
    some_call.map(lambda call: ("all of", call)),
    st.integers(0, 2).map(lambda which: ("step", which)),
    st.sampled_from([LOOK, REST]),
    st.integers(0, 5).map(lambda stores: ("killed", stores)),
)
FALSE_ALARM: list[Act] = [("all of", UNNOTICED), ("begin", MENDED), ("step", 0), LOOK]
"""A look between the kernel's count and the spare's."""
RESOLVED: list[Act] = [("step", 0), ("step", 0)]


@settings(max_examples=1000)
@given(st.lists(acts, max_size=60), st.lists(st.integers(0, 2), max_size=40))
@example([*FALSE_ALARM, *RESOLVED, ("all of", LOST)], [])
@example([*FALSE_ALARM, *RESOLVED, LOOK, ("all of", LOST)], [])
@example([*FALSE_ALARM, REST, ("all of", LOST)], [])
@example([*FALSE_ALARM, REST, LOOK, ("all of", LOST)], [])
@example([("all of", LOST), LOOK, ("all of", LOST)], [])
@example([*FALSE_ALARM, ("killed", 0), *RESOLVED, ("all of", LOST)], [])
@example([*FALSE_ALARM[:-1], ("killed", 2), LOOK, *RESOLVED, ("all of", LOST)], [])
@example([*FALSE_ALARM, *RESOLVED, ("all of", LOST), REST, ("killed", 1)], [])
@example([("all of", LOST), ("killed", 1), ("all of", MENDED)], [])
@example([("all of", LOST), LOOK, ("killed", 5), ("all of", LOST)], [])
@example([("all of", MENDED), ("begin", LOST), LOOK], [PAUSE] * 3 + [0] * 3)
def test_each_look_finds_what_was_lost_before_it(story: list[Act], meanwhile: list[int]) -> None:
    """What looked like a loss, and was none, must not hide one that comes later; nor must the end of a process."""
    kernel = Slow(meanwhile)
    notes = np.zeros(SKIPS_NOTES, SKIPS)
    skips = kernel.skips(notes)
    total = 0
    for act, what in [*story, ("look", None)]:
        if act == "begin":
            kernel.begin(what)
        elif act == "all of":
            kernel.begin(what)
            kernel.finish(-1)
        elif act == "step":
            kernel.step(what)
        elif act == "rest":
            while kernel.under_way:
                kernel.finish(0)
            kernel.now += UNDER_WAY
        elif act == "killed":
            with contextlib.suppress(Killed):
                kernel.skips(Notes(notes, what)).total()
            skips = kernel.skips(notes)
        else:
            uncovered, before = kernel.uncovered, total
            total = skips.total()
            assert total > before or (total == before and not uncovered)
            if total > before:
                kernel.found()


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


def test_what_the_probes_tell_is_not_lost() -> None:
    kernel = Kernel(CALLED, TRAMPOLINES[False], [], True)
    skips = kernel.skips()
    call(kernel, (True, True, True))
    assert skips.total() == 1
    call(kernel, (True, True, True))
    kernel.told += 1
    assert skips.total() == 1


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

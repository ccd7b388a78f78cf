"""What can be preempted has several programs, because the kernel then skips one: together they lose nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from replicator.capture import bpf_sensor, source
from replicator.capture.btf import Function
from replicator.capture.compile import kernel_types
from replicator.capture.event import EventKind
from replicator.capture.layout import FunctionHook
from replicator.capture.load import Program
from replicator.capture.preemption import tracepoints_preemptible
from replicator.capture.vfs import MECHANISM, VfsSensor
from tests.native.traced import Traced, traced
from tests.support.helpers import call
from tests.support.programs import skipped

WRITE, WRITE_END = "ext4_file_write_iter", "ext4_da_write_end"
"""A function, and a tracepoint."""
PREEMPTION = Path("/sys/kernel/debug/sched/preempt")
NORMAL, REAL_TIME, COUNT = 3, 6, 10_000
"""Threads of both kinds, and the writes of each normal one."""
RING = 1 << 25
"""Bytes for what real-time threads write meanwhile: the slower the host, the more."""
OPENED = NORMAL + REAL_TIME
"""Calls that may be missed besides: each thread makes its file, or cuts it short, all at the same time."""


@pytest.fixture
def trampolines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MECHANISM, "fexit")


@pytest.fixture
def preemptible() -> Iterator[None]:
    """The kernel interrupts programs for others that are more urgent, whatever it was told at boot."""
    before = PREEMPTION.read_text()
    PREEMPTION.write_text("full")
    try:
        yield
    finally:
        PREEMPTION.write_text(before[before.index("(") + 1 : before.index(")")])


def written(place: Traced, fd: int, count: int) -> list[int]:
    """The offsets that `count` writes to a file are told with, in order."""
    for number in range(count):
        os.pwrite(fd, b"y", number)
    events = place.records(fd).events
    return [int(offset) for offset in events["off"][events["kind"] == EventKind.WRITE]]


@pytest.mark.usefixtures("trampolines")
def test_every_write_is_told_exactly_once(tmp_path: Path) -> None:
    with traced("ext4", tmp_path / "fs", made=VfsSensor) as place, place.file() as fd:
        assert written(place, fd, 10_000) == list(range(10_000))


@pytest.mark.usefixtures("trampolines")
@pytest.mark.parametrize("there", [(0, 2), (1, 2)], ids=str)
def test_any_two_programs_tell_every_write_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[int, ...]
) -> None:
    """Those that are missing here are skipped by the kernel for good."""
    real = Program._attach_trampoline

    def only_these(self: Program, hook: FunctionHook, function: Function, spare: int) -> None:
        if spare in there or hook.entry:
            real(self, hook, function, spare)

    monkeypatch.setattr(bpf_sensor, "preemptible", lambda: True)
    monkeypatch.setattr(Program, "_attach_trampoline", only_these)
    with traced("ext4", tmp_path / "fs", made=VfsSensor) as place, place.file() as fd:
        assert written(place, fd, 1000) == list(range(1000))


def lost(place: Traced) -> int:
    """Let many writers write; how many of their writes were not told. None is told twice."""
    call("contend", place.root, NORMAL, REAL_TIME, COUNT)
    events = place.everything()
    events = events[events["kind"] == EventKind.WRITE]
    missing = 0
    for number in range(NORMAL + REAL_TIME):
        there = (place.root / str(number)).stat()
        offsets = events["off"][events["ino"] == there.st_ino]
        assert len(np.unique(offsets)) == len(offsets)
        missing += there.st_size // 8 - len(offsets)
    return missing


@pytest.mark.usefixtures("preemptible")
def test_what_all_programs_miss_is_counted_and_then_not_missed_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """Where three writers preempt one another, two programs can be skipped for the last: then probes are added."""
    monkeypatch.setattr(bpf_sensor, "preemptible", lambda: False)
    with traced("ext4", tmp_path / "fs", ring_bytes=RING, made=VfsSensor) as place:
        missing = lost(place)
        record_property("skipped", skipped(WRITE))
        assert any(skipped(WRITE)), "no program was skipped: the test's writers do not preempt one another"
        counted = place.sensor.losses()["recursion"]
        assert missing - place.sensor.losses()["ring_full"] <= counted <= missing + OPENED
        if missing:
            assert f"kretprobe {WRITE}" in [item.mechanism for item in place.sensor.coverage()]
            assert lost(place) == 0
            assert place.sensor.losses()["recursion"] <= counted + OPENED


@pytest.mark.usefixtures("preemptible")
def test_at_tracepoints_too(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Kernels that never preempt a program there are known: theirs have no spares, and are never skipped."""
    with traced("ext4", tmp_path / "fs", ring_bytes=RING) as place:
        missing = lost(place)
        record_property("missing", missing)
        record_property("skipped", skipped(WRITE_END))
        assert any(skipped(WRITE_END)) == tracepoints_preemptible(kernel_types())
        assert len(skipped(WRITE_END)) == (1 + source.MOST_SPARES if any(skipped(WRITE_END)) else 1)
        losses = place.sensor.losses()
        assert missing <= losses["recursion"] + losses["ring_full"]

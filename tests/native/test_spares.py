"""Programs at tracepoints have spares where the kernel may skip them: each tells what the ones before it did not."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from replicator.capture import bpf_sensor, source
from replicator.capture.event import EventKind
from replicator.capture.layout import Hook
from replicator.capture.load import Program
from tests.native.traced import Traced, traced

COUNT = 300
DIRECT = 4096
Kept = Callable[[tuple[int, ...]], None]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """Makes a sensor take this kernel for one that preempts at tracepoints, and attach only some of the programs.

    Those that are missing are skipped by the kernel for good.
    """

    def only(there: tuple[int, ...]) -> None:
        real = Program._attach_tracepoint

        def these(self: Program, hook: Hook, spare: int) -> None:
            if spare in there:
                real(self, hook, spare)

        monkeypatch.setattr(Program, "_attach_tracepoint", these)

    monkeypatch.setattr(source, "tracepoints_preemptible", lambda types: True)
    monkeypatch.setattr(bpf_sensor, "preemptible", lambda: True)
    return only


def told(place: Traced, fd: int) -> list[int]:
    """The offsets that writes to a file were told with, in order."""
    events = place.records(fd).events
    return [int(offset) for offset in events["off"][events["kind"] == EventKind.WRITE]]


@pytest.mark.parametrize("there", [(0, 1, 2), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
def test_whichever_programs_run_every_write_is_told_once(tmp_path: Path, kept: Kept, there: tuple[int, ...]) -> None:
    kept(there)
    with traced("ext4", tmp_path / "fs") as place, place.file() as fd:
        for number in range(COUNT):
            os.pwrite(fd, b"y", number)
        assert told(place, fd) == list(range(COUNT))


@pytest.mark.parametrize("there", [(0, 1, 2), (1,), (0, 2)], ids=str)
def test_a_direct_write_is_told_once_too(tmp_path: Path, kept: Kept, there: tuple[int, ...]) -> None:
    """Its end leaves no notes, because interrupts come there: each program looks whether it was told."""
    kept(there)
    with (
        traced("xfs", tmp_path / "fs") as place,
        mmap.mmap(-1, DIRECT) as aligned,
        place.file(flags=os.O_RDWR | os.O_DIRECT) as fd,
    ):
        for number in range(COUNT):
            os.pwritev(fd, [aligned], number * DIRECT)
        assert told(place, fd) == [number * DIRECT for number in range(COUNT)]


def test_where_interrupts_come_by_every_kernel_has_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt that meets the first under way is told by the second."""
    real = Program._attach_tracepoint

    def skipped(self: Program, hook: Hook, spare: int) -> None:
        if spare or hook.tracepoint != "iomap_dio_complete":
            real(self, hook, spare)

    monkeypatch.setattr(bpf_sensor, "preemptible", lambda: False)
    monkeypatch.setattr(source, "tracepoints_preemptible", lambda types: False)
    monkeypatch.setattr(Program, "_attach_tracepoint", skipped)
    with (
        traced("xfs", tmp_path / "fs") as place,
        mmap.mmap(-1, DIRECT) as aligned,
        place.file(flags=os.O_RDWR | os.O_DIRECT) as fd,
    ):
        os.pwritev(fd, [aligned], DIRECT)
        assert told(place, fd) == [DIRECT]

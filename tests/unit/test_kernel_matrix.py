"""Which tables are run on which kernel."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from tests.kernel.machine import PROJECT, Kernel
from tests.kernel.matrix import GUEST, MATRIX, NEWEST, chosen
from tests.kernel.record import FILESYSTEMS

KERNELS = [Kernel(series, f"{series}.0-amd64", Path("vmlinuz")) for series in ("6.1", "6.12", "7.3")]


def test_in_turn_every_two_of_kernel_sensor_and_filesystem_meet() -> None:
    runs = [(kernel, run) for kernel, run in chosen(KERNELS, in_turn=True) if run.name != GUEST.name]
    met = {
        pair
        for kernel, run in runs
        for filesystem in run.filesystems
        for pair in combinations((kernel.series, run.name, filesystem), 2)
    }
    parts = ([kernel.series for kernel in KERNELS], [run.name for run in MATRIX], list(FILESYSTEMS))
    assert met == {(a, b) for one, other in combinations(parts, 2) for a in one for b in other}
    assert len(runs) == 9
    assert all(len(run.filesystems) == 1 for _, run in runs)


def test_in_turn_what_is_left_out_on_one_kernel_is_run_on_another() -> None:
    guests = [run for _, run in chosen(KERNELS, in_turn=True) if run.name == GUEST.name]
    assert guests[-1] == GUEST
    assert all((PROJECT / path).is_file() and f"--ignore={path}" in run.tests for run in guests[:-1] for path in NEWEST)


def test_otherwise_everything_is_run() -> None:
    runs = [run for run in chosen(KERNELS) if run[1] is not GUEST]
    assert runs == [(kernel, run) for kernel in KERNELS for run in MATRIX]
    assert all(tuple(run.filesystems) == FILESYSTEMS for _, run in runs)

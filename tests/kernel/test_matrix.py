"""The tables of write paths, names and attributes on the distribution's kernels, with each sensor.

One test here is a run of pytest inside a machine; `make test-kernels` is the door. What tests/kernel/guest has is run
there too, once a kernel.
"""

from __future__ import annotations

import pytest

from tests.kernel.fleet import Fleet
from tests.kernel.machine import Kernel, Machine, Run, kernels
from tests.kernel.matrix import chosen
from tests.kernel.outcome import Verdict

SHOWN = 3
"""Failures of a run that are told in full."""

if {"6.1", "6.12"} - {kernel.series for kernel in kernels()} and not any("generic" in one.release for one in kernels()):
    raise RuntimeError("build/kernels lacks 6.1 or 6.12: `make test-kernels` fetches them, or `scripts/kernels` does")

pytestmark = pytest.mark.timeout(0)  # the machines have a limit of their own


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each run."""
    runs = chosen(kernels(), in_turn=metafunc.config.getoption("in_turn"))
    ids = [f"{kernel.series}-{run.name}" for kernel, run in runs]
    metafunc.parametrize(("kernel", "run"), runs, ids=ids)


def test_all_of_it_passes_on_this_kernel(fleet: Fleet, kernel: Kernel, run: Run) -> None:
    machine = fleet.finished(kernel, run)
    told = machine.outcomes(run.name)
    failed = [one for one in told if one.verdict is Verdict.FAILED]
    code = machine.code(run.name)
    if code is None:
        failed_in_full = "\n\n".join(one.report for one in failed[:SHOWN])
        pytest.fail(
            f"the machine {machine.fate} before {run.name} was over: {len(told)} tests\n{failed_in_full}\n"
            f"{_logs(machine, run)}",
            pytrace=False,
        )
    if failed:
        lines = [f"{len(failed)} of {len(told)} failed on {kernel.release}; all of it is in {machine.shared}:"]
        lines += [f"  {one.filesystem} {one.table}: {one.row}" for one in failed]
        lines += [f"\n=== {one.filesystem}: {one.row}\n{one.report}" for one in failed[:SHOWN]]
        pytest.fail("\n".join(lines), pytrace=False)
    assert code == 0, _logs(machine, run)
    assert told, _logs(machine, run)


def _logs(machine: Machine, run: Run) -> str:
    names = (f"{run.name}.log", "machine.log", "dmesg.log", "console.log")
    return "\n".join(f"--- {name}\n{machine.text(name)}" for name in names)

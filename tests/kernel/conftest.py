"""The fixture that runs the machines, and what is said and written at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernel.coverage import document
from tests.kernel.fleet import Fleet
from tests.kernel.machine import PROJECT, Kernel, Run, kernels
from tests.kernel.matrix import MATRIX, SENSORS
from tests.kernel.outcome import Outcome, Verdict
from tests.kernel.record import FILESYSTEMS

PAGE = PROJECT / "docs/coverage.md"

fleet_key = pytest.StashKey[Fleet]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much is run."""
    parser.addoption("--in-turn", action="store_true", help="a third of it (tests/kernel/matrix.py)")


@pytest.fixture(scope="session")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """The machines for the tests that were chosen, started when first waited for."""
    wanted: dict[Kernel, list[Run]] = {}
    for item in request.session.items:
        chosen: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
        if "kernel" in chosen and "run" in chosen:
            wanted.setdefault(chosen["kernel"], []).append(chosen["run"])
    made = Fleet(wanted)
    request.config.stash[fleet_key] = made
    yield made
    made.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """A line for each kernel and sensor; and the page, if all of them were run to their end."""
    fleet = config.stash.get(fleet_key, None)
    if fleet is None:
        return
    terminalreporter.section("kernels")
    results: dict[tuple[str, str], list[Outcome]] = {}
    over = True
    for kernel, machine in fleet.machines.items():
        for run in machine.runs:
            told = machine.outcomes(run.name)
            code = machine.code(run.name)
            results[kernel.release, run.name] = told
            over = over and code is not None
            count = Counter(one.verdict for one in told)
            seconds = sum(one.seconds for one in told)
            line = f"{kernel.release} {run.name}: {count[Verdict.PASSED]} passed, {count[Verdict.FAILED]} failed, "
            line += f"{count[Verdict.REFUSED]} n/a, {seconds:.0f} s"
            line += f", on {' and '.join(run.filesystems)} alone" if run.filesystems != FILESYSTEMS else ""
            terminalreporter.line(line + ("" if code is not None else f"; not over: the machine {machine.fate}"))
    releases = {kernel.series: kernel.release for kernel in fleet.machines}
    whole = not config.getoption("in_turn")
    whole = whole and all((kernel.release, run.name) in results for kernel in kernels() for run in MATRIX)
    if over and whole and len(releases) >= 3:
        PAGE.write_text(document(releases, list(SENSORS), results))
        terminalreporter.line(f"{PAGE.relative_to(PROJECT)} is written")
    else:
        terminalreporter.line(
            f"{PAGE.relative_to(PROJECT)} is left as it is: it wants all of three kernels, not in turn"
        )

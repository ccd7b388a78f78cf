"""A plugin of pytest for the runs inside a guest: `-p tests.kernel.record --records FILE`.

Takes the tests that are collected; keeps those on the filesystems that are asked for, one filesystem after the other,
so that one pair serves each (tests/conftest.py); writes each outcome to the file as soon as it is known, for a machine
can die.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.outcome import Outcome, Verdict

FILESYSTEMS = ("ext4", "xfs", "btrfs")
"""What the tables are run on."""
REPORT_LIMIT = 30_000
"""Characters of a failure that are kept."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("records")
    group.addoption("--records", type=Path, default=None, help="write the outcomes to this file, one a line")
    group.addoption("--filesystems", default=",".join(FILESYSTEMS), help="stages of other filesystems are left out")


def pytest_configure(config: pytest.Config) -> None:
    """Begin the file."""
    path = config.getoption("records")
    if path is not None:
        config.pluginmanager.register(Recorder(path, config.getoption("filesystems").split(",")))


def stage_of(item: pytest.Item) -> str:
    """The filesystem of a test's stage; "" if it has none."""
    callspec = getattr(item, "callspec", None)
    return str(callspec.params.get("stage", "")) if callspec is not None else ""


def name_of(item: pytest.Item) -> tuple[str, str]:
    """(table, row) of a test: its module's name and its own, in which the stage does not appear."""
    callspec = getattr(item, "callspec", None)
    words = str(getattr(item, "originalname", item.name)).removeprefix("test_").replace("_", " ")
    stage = stage_of(item)
    if callspec is not None:
        one = callspec.id
        if stage:
            one = "" if one == stage else one.removeprefix(f"{stage}-").removesuffix(f"-{stage}")
        words += f": {one.replace('_', ' ')}" if one else ""
    return item.path.stem.removeprefix("test_"), words


class Recorder:
    """The hooks, and the file."""

    def __init__(self, path: Path, filesystems: list[str]) -> None:
        self._file = path.open("w")
        self._filesystems = filesystems
        self._items: dict[str, pytest.Item] = {}
        self._reports: dict[str, list[pytest.TestReport]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Choose and sort."""
        order = ["", *self._filesystems]
        out = [item for item in items if stage_of(item) not in order]
        if out:
            config.hook.pytest_deselected(items=out)
        items[:] = sorted((item for item in items if stage_of(item) in order), key=lambda at: order.index(stage_of(at)))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Remember whose reports will come."""
        self._items[item.nodeid] = item
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write when all three phases are over: a fault of the teardown is one too."""
        reports = self._reports.setdefault(report.nodeid, [])
        reports.append(report)
        if report.when != "teardown":
            return
        item = self._items.pop(report.nodeid)
        del self._reports[report.nodeid]
        failed = [one for one in reports if one.failed]
        verdict = Verdict.PASSED
        if failed:
            verdict = Verdict.FAILED
        elif any(name == "refusal" for name, _ in report.user_properties):
            verdict = Verdict.REFUSED
        said = "\n".join(
            part
            for one in failed
            for part in (f"{one.when}:", one.longreprtext, *(f"--- {title}\n{text}" for title, text in one.sections))
        )
        seconds = round(sum(one.duration for one in reports), 2)
        table, row = name_of(item)
        self._file.write(Outcome(table, row, stage_of(item), verdict, seconds, said[:REPORT_LIMIT]).line())
        self._file.flush()

    def pytest_unconfigure(self) -> None:
        """The file is complete."""
        self._file.close()

"""Fixtures of the end-to-end tests: mounted filesystems, running pairs, one subdirectory a case.

A pair (both ends, on a source and a replica filesystem of their own) serves all cases of a module, because starting one
costs seconds. A case that fails gets the next one a fresh pair, so that one fault is reported once.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from tests.support import pair as pairs
from tests.support.deadline import SLOW
from tests.support.filesystems import FILESYSTEMS, filesystem
from tests.support.pair import Pair
from tests.support.turns import turn

LOG_LIMIT = 6000
"""Bytes of each process's log that a failure's report shows."""

ATTEMPTS = 3
"""So many pairs of a stage are started in vain, each of which may take a minute, before the rest of its cases fail."""

EXCLUDED_SUFFIX = ".part~"
"""Names ending so are excluded in every stage's pair; all other tests just don't use it."""

failed_key = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the logs of both ends with each failure, and remember the failure for the fixtures."""
    report = yield
    if report.failed:  # type: ignore[attr-defined]
        item.stash[failed_key] = True
        for process in pairs.started:
            report.sections.append(  # type: ignore[attr-defined]
                (f"log of {process.words[0]} ({process.log.name}), {process.fate()}", process.text(LOG_LIMIT))
            )
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Several processes may share a run; a test that is to be alone waits for the others, before its time counts."""
    with turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """A test may take longer on a slow machine, and an example on a busy one."""
    if config.getoption("timeout") is None:
        config.option.timeout = float(config.getini("timeout")) * SLOW
    if config.pluginmanager.hasplugin("hypothesispytest"):
        from hypothesis import settings

        settings.register_profile("busy", deadline=None)
        settings.load_profile("busy")


def pytest_runtest_setup() -> None:
    """Forget the processes of the tests before, but for those that still serve, and what they left in the kernel."""
    pairs.tidy()


def pytest_sessionfinish() -> None:
    """Nothing stays in the kernel."""
    pairs.tidy()


def remove(top: Path) -> None:
    """Remove a tree, however deep it is."""
    try:
        shutil.rmtree(top)
    except (OSError, RecursionError):
        subprocess.run(["rm", "-rf", "--", top], check=False, capture_output=True)


@dataclass
class Stage:
    """Where pairs run: a source and a replica filesystem, and the pair on them, made when first asked for."""

    fstype: str
    """The source's filesystem."""
    replica_fstype: str
    source_mount: Path
    replica_mount: Path
    directory: Path
    """For state and logs, outside both."""
    pair: Pair | None = None
    rounds: int = 0
    unready: int = 0
    """How often in a row both ends did not get ready."""

    def prepare(self) -> Pair:
        """A pair on new empty roots, not started yet, instead of the one there was."""
        self.close()
        self.rounds += 1
        source, replica = (mount / f"root{self.rounds}" for mount in (self.source_mount, self.replica_mount))
        source.mkdir()
        replica.mkdir()
        state = self.directory / f"state{self.rounds}"
        self.pair = Pair(source, replica, state, exclude=[f"*{EXCLUDED_SUFFIX}"])
        return self.pair

    def running(self) -> Pair:
        """The pair, both ends up; a new one if the last has died or was dropped."""
        if self.pair is not None and not self.pair.healthy():
            self.drop()
        if self.pair is not None:
            return self.pair
        assert self.unready < ATTEMPTS, f"{self.unready} pairs in a row did not get ready here; no more are started"
        self.unready += 1
        pair = self.prepare().start()
        assert pair.sender is not None
        assert "is not hooked" not in pair.sender.text(), pair.sender.text()
        self.unready = 0
        return pair

    def drop(self) -> None:
        """End the pair at once, without judging it."""
        if self.pair is not None:
            self.pair.kill()
            remove(self.pair.source)
            remove(self.pair.replica)
        self.pair = None

    def close(self) -> None:
        """Stop the pair as the contract says."""
        pair, self.pair = self.pair, None
        if pair is not None:
            pair.stop()


@dataclass(frozen=True)
class Case:
    """One test's own directory in a running pair."""

    pair: Pair
    name: str
    fstype: str

    @property
    def source(self) -> Path:
        return self.pair.source / self.name

    @property
    def replica(self) -> Path:
        return self.pair.replica / self.name

    def assert_same(self, timeout: float = pairs.WAIT_SECONDS, holes: bool = False) -> None:
        """Wait, then compare this case's directory."""
        self.pair.assert_same(self.name, timeout, holes)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A new directory on disk, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="rsyncfs-test-", dir="/var/tmp", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def on(*combinations: str) -> pytest.MarkDecorator:
    """A module's mark that says on which filesystems its stages are; "ext4-to-xfs" has a replica of another type."""
    return pytest.mark.parametrize("stage", combinations, indirect=True)


@contextlib.contextmanager
def open_stage(directory: Path, combination: str) -> Iterator[Stage]:
    """A stage on `combination`: "ext4", or "ext4-to-xfs" for a replica of another type."""
    source, _, replica = combination.partition("-to-")
    replica = replica or source
    with (
        filesystem(source, directory / "source") as source_mount,
        filesystem(replica, directory / "replica") as replica_mount,
    ):
        stage = Stage(source, replica, source_mount, replica_mount, directory)
        try:
            yield stage
        except BaseException:
            stage.drop()
            raise
        stage.close()


def _stage_scope(fixture_name: str, config: pytest.Config) -> Literal["session", "module"]:
    """On an emulated machine, where starting both ends is dear, a pair serves all modules (tests/kernel/record.py)."""
    return "session" if config.getoption("records", None) else "module"


@pytest.fixture(scope=_stage_scope, params=FILESYSTEMS)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage on each filesystem; a module may choose others with `on`."""
    with tempfile.TemporaryDirectory(prefix="rsyncfs-test-", dir="/var/tmp", ignore_cleanup_errors=True) as directory:
        with open_stage(Path(directory), request.param) as stage:
            yield stage


@pytest.fixture
def case(request: pytest.FixtureRequest, stage: Stage) -> Iterator[Case]:
    """An empty directory of this test's own in the source of a running pair; removed afterwards."""
    pair = stage.running()
    name = re.sub(r"[^A-Za-z0-9_]+", "-", request.node.name).strip("-")
    made = Case(pair, name, stage.fstype)
    made.source.mkdir()
    yield made
    if request.node.stash.get(failed_key, False):
        stage.drop()
    else:
        remove(made.source)

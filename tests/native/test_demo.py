"""What a stranger runs first."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from tests.support.pair import COMMAND, environment, rsyncfs

pytestmark = pytest.mark.native

PLACE = Path("/var/tmp")


def left() -> set[Path]:
    """Directories of demos, running or not."""
    return set(PLACE.glob("rsyncfs-demo-*"))


def of(directory: Path) -> list[int]:
    """Processes that have a directory in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if bytes(directory) in words:
            found.append(int(path.parent.name))
    return found


def test_a_summary_for_programs() -> None:
    before = left()
    done = rsyncfs("demo", "--seconds", "2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    assert summary.keys() == {
        *("seconds", "events", "bytes_written", "bytes_on_wire", "lag_applied_ms", "lag_durable_ms", "identical")
    }
    assert summary["identical"] is True
    assert summary["seconds"] >= 2
    assert min(summary[key] for key in ("events", "bytes_written", "bytes_on_wire")) > 0
    for key in ("lag_applied_ms", "lag_durable_ms"):
        assert summary[key].keys() == {"p50", "p99", "max"}
        assert 0 < summary[key]["p50"] <= summary[key]["p99"] <= summary[key]["max"]
    assert left() == before


def test_a_table_for_people() -> None:
    done = rsyncfs("demo", "--seconds", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "identical"
    for words in ("lag", "p50", "p99", "on the wire"):
        assert words in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_stopped_in_the_middle_it_leaves_nothing_behind(number: signal.Signals) -> None:
    before = left()
    # The suite may run in the background of a shell, which has all that it starts ignore SIGINT.
    words = ["env", f"--default-signal={number.name[3:]}", *COMMAND, "demo", "--seconds", "60", "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    try:
        directory = eventually(lambda: left() - before, 30, "the demo makes its directory").pop()
        eventually((directory / "source" / "orders.db").exists, 60, "the workload runs")
        assert len(of(directory)) >= 2  # both ends, and who holds the queue of names for the sender
    finally:
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert b"Traceback" not in errors, errors.decode()
    assert of(directory) == []
    assert left() == before

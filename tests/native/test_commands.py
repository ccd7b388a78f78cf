"""`status` beside a running pair."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Case, on
from tests.support.cgroups import cgroup, hierarchy
from tests.support.deadline import eventually
from tests.support.operations import MIB, content
from tests.support.pair import rsyncfs

pytestmark = [pytest.mark.native, on("ext4")]


def populate(case: Case) -> None:
    (case.source / "sub").mkdir()
    for number in range(5):
        (case.source / f"file{number}").write_bytes(content(3 * MIB if number == 0 else 9000, number))
    (case.source / "sub" / "inner").write_bytes(b"inner")
    (case.source / "link").symlink_to("file1")
    case.pair.wait()


def test_status_of_both_ends(case: Case) -> None:
    populate(case)
    told = case.pair.status()
    assert (told["connected"], told["phase"], told["dirty_files"], told["refused"]) == (True, "ready", 0, [])
    assert told["files"] >= 9
    assert told["sensor"] == "tracepoint"
    for state, words in (
        (case.pair.send_state, ("source:", "receiver:", "connected", "lag:", "wire:")),
        (case.pair.receive_state, ("replica:", "sender:", "state:    complete", "durable:")),
    ):
        done = rsyncfs("status", "--state", state)
        assert done.returncode == 0
        for word in words:
            assert word in done.stdout


def test_status_tells_who_wrote_what_is_owed(case: Case, scratch: Path) -> None:
    """A process in a container writes to an old file and a new one while the receiver stands still, and ends."""
    container = "/rsyncfs-test.slice/docker-" + "0123456789ab" + "d" * 52 + ".scope"
    (case.source / "old").write_bytes(b"x" * 10_000)
    case.pair.wait()
    assert case.pair.status()["writers"] == []
    assert case.pair.receiver is not None

    def row() -> dict[str, Any] | None:
        return next((row for row in case.pair.status()["writers"] if row["container"] == container), None)

    with hierarchy(scratch) as mount, cgroup(mount, container) as group:
        os.kill(case.pair.receiver.pid, signal.SIGSTOP)
        try:
            script = 'printf 12345 | dd of="$1/old" conv=notrunc status=none; exec tee "$1/new"'
            with group.start(
                ["sh", "-euc", script, "sh", case.source], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
            ) as process:
                assert process.stdin is not None
                process.stdin.write(b"y" * 3000)
                process.stdin.flush()
                eventually(lambda: (told := row()) is not None and told["bytes"] >= 3000, 10, "its writer is known")
            assert process.returncode == 0
            rows = [told for told in case.pair.status()["writers"] if told["container"] == container]
            assert {told["cgroup"] for told in rows} == {group.id}
            tee = next(told for told in rows if told["process"] == "tee")
            # the directory in which it made the file is owed as well
            assert (tee["pid"], tee["files"], tee["bytes"]) == (process.pid, 2, 3000)
            assert sum(told["files"] for told in rows) == 3
            assert sum(told["bytes"] for told in rows) == 3005
            shown = rsyncfs("status", "--state", case.pair.send_state).stdout.splitlines()
            assert f"tee ({process.pid}) in docker-0123456789ab: 2 files, 3000 bytes" in next(
                line for line in shown if "writers:" in line
            )
        finally:
            os.kill(case.pair.receiver.pid, signal.SIGCONT)
    case.pair.wait()
    assert case.pair.status()["writers"] == []

"""Who writes what: control groups, as the vfs sensor tells them."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Case, on
from tests.support.cgroups import cgroup, hierarchy
from tests.support.deadline import eventually
from tests.support.filesystems import run
from tests.support.helpers import call
from tests.support.tracing import Trace

pytestmark = [pytest.mark.native, on("xfs")]

CONTAINER = "/rsyncfs-test.slice/docker-" + "0123456789ab" + "c" * 52 + ".scope"


def test_a_writer_in_a_group_is_shown_under_it_by_trace_and_status(case: Case, scratch: Path, trace: Trace) -> None:
    assert case.pair.receiver is not None
    case.pair.wait()
    with hierarchy(scratch) as mount, cgroup(mount, CONTAINER) as group:
        os.kill(case.pair.receiver.pid, signal.SIGSTOP)
        try:
            with group.start(["tee", case.source / "file"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as writer:
                assert writer.stdin is not None
                writer.stdin.write(b"y" * 3000)
                writer.stdin.flush()

                def owed() -> bool:
                    rows = [row for row in case.pair.status()["writers"] if row["container"] == CONTAINER]
                    return (group.id, "tee", writer.pid, 3000) in [
                        (row["cgroup"], row["process"], row["pid"], row["bytes"]) for row in rows
                    ]

                eventually(owed, 20, "status shows the writer under its group")
            trace.catch_up()
        finally:
            os.kill(case.pair.receiver.pid, signal.SIGCONT)
        shown = [one for one in trace.records(f"{case.name}/file") if one["kind"] == "write"]
        assert [(one["offset"], one["length"], one["pid"], one["process"]) for one in shown] == [
            (0, 3000, writer.pid, "tee")
        ]
        assert {(one["cgroup"], one["container"]) for one in shown} == {(group.id, CONTAINER)}
    case.assert_same()


def test_a_direct_write_in_the_background_is_told_under_who_began_it(case: Case, trace: Trace) -> None:
    """It ends in a worker, or in an interrupt."""
    (case.source / "file").write_bytes(bytes(65_536))
    run("sync", case.source / "file")
    trace.catch_up()
    call("aio_write", case.source / "file", "direct", 32_768, 8192, 1)
    trace.catch_up()
    shown = [one for one in trace.records(f"{case.name}/file") if one["offset"] == 32_768]
    assert [(one["length"], one["process"]) for one in shown] == [(8192, "aio_write")]
    case.assert_same()

"""Names of processes that run, and of none that does not."""

from __future__ import annotations

import os
import subprocess
import sys

from replicator.attribution.processes import command_of
from tests.support.deadline import eventually


def test_a_running_process_has_the_name_that_ps_shows() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        eventually(lambda: command_of(process.pid) == "sleep", 10)  # it is called otherwise until it executes
    finally:
        process.kill()
        process.wait()
    assert command_of(process.pid) is None


def test_a_name_that_would_forge_a_line_is_escaped() -> None:
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b'a\\nb'); print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.read(1)
        assert command_of(process.pid) == "a\\x0ab"
    finally:
        process.kill()
        process.communicate()
    assert command_of(os.getpid()) is not None

"""Descriptors from systemd: ours are taken, others are closed, and none is taken that is meant for another process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from replicator.keeper.systemd import SystemdStore, received

PROGRAM = """
import os, sys
for at in range(3):
    os.dup2(int(sys.argv[1]), 3 + at)
from replicator.keeper.systemd import received
environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "rsyncfs-a:else:rsyncfs-a", "X": "y"}
print(received(environ), environ, os.get_inheritable(3))
for at in (4, 5):
    try:
        os.fstat(at)
    except OSError:
        print("closed")
"""


def test_ours_are_taken_and_the_others_closed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "0"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert done.stdout == "{'a': 3} {'X': 'y'} False\nclosed\nclosed\n"


def test_those_of_another_process_are_left_alone() -> None:
    for owner, count in ((str(os.getpid() + 1), "3"), (str(os.getpid()), "many"), ("", "")):
        environ = {"LISTEN_PID": owner, "LISTEN_FDS": count, "LISTEN_FDNAMES": "rsyncfs-a:rsyncfs-b:rsyncfs-c"}
        assert received(environ) == {}
        assert environ == {}
    assert received({}) == {}


def test_what_nobody_listens_to_can_be_given_up_and_not_stored(tmp_path: Path) -> None:
    received = os.dup(0)
    store = SystemdStore(str(tmp_path / "nobody"), {"names": received})
    store.drop()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(received)
    with pytest.raises(OSError, match="No such file"):
        store.put({"names": 0})

"""`wait` is a true barrier: what returned before the call is on the replica after it, whatever else is going on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.conftest import Case, on
from tests.support.load import Churn
from tests.support.oracle import differences
from tests.support.pair import rsyncfs

pytestmark = [pytest.mark.native, on("ext4")]

ROUNDS = 500
PATIENCE = 10.0
"""Seconds for a barrier: the writer beside it must not hold it up."""


@pytest.mark.alone
def test_a_barrier_five_hundred_times_beside_a_writer_that_never_pauses(case: Case) -> None:
    mine, theirs = case.source / "mine", case.source / "theirs"
    mine.mkdir()
    theirs.mkdir()
    (mine / "file").write_bytes(b"start")
    there = case.replica / "mine"
    with Churn(theirs, limit=240) as churn:
        for number in range(ROUNDS):
            match number % 4:
                case 0:
                    (mine / "file").write_bytes(b"round %d" % number)
                case 1:
                    with (mine / "file").open("ab") as file:
                        file.write(b"and %d" % number)
                case 2:
                    (mine / "file").rename(mine / f"name{number}")
                case _:
                    (mine / f"name{number - 1}").rename(mine / "file")
            case.pair.wait(PATIENCE)
            wrong = differences(mine, there)
            assert wrong == [], f"round {number}"
        assert churn.turns > ROUNDS
        churn.stop()
    case.assert_same()


def test_wait_says_no_when_the_replica_is_away(case: Case) -> None:
    case.pair.wait()
    case.pair.kill_receiver()
    (case.source / "file").write_bytes(b"nobody is there to take it")
    began = time.monotonic()
    code, said = case.pair.try_wait(1)
    assert code == 1, said
    assert 1 <= time.monotonic() - began < 10
    assert "Traceback" not in said
    case.pair.restart_receiver()
    case.assert_same()


def test_wait_without_a_sender_is_an_environment_fault(case: Case, tmp_path: Path) -> None:
    done = rsyncfs("wait", "--state", tmp_path, "--timeout", "1")
    assert done.returncode == 3, done
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert os.listdir(tmp_path) == []

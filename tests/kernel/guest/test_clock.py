"""A host's clock that is set while it replicates: neither the result nor the figures of lag change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from tests.support.filesystems import filesystem
from tests.support.load import Churn
from tests.support.operations import MIB, content
from tests.support.pair import Pair

HOUR = 3600
LONGEST = 1800.0  # s: what is less than half a jump is no jump


def jump(seconds: float) -> None:
    time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)


@pytest.fixture(autouse=True)
def _set_right() -> Iterator[None]:
    wall, steady = time.time(), time.monotonic()
    yield
    time.clock_settime(time.CLOCK_REALTIME, wall + time.monotonic() - steady)


def figures_are_sane(pair: Pair) -> None:
    status = pair.status()
    assert 0 <= status["oldest_unreplicated_seconds"] < LONGEST
    for lag in ("lag_applied_ms", "lag_durable_ms"):
        assert 0 <= status[lag]["max"] < 1e3 * LONGEST
    assert 0 <= pair.metrics()["rsyncfs_oldest_unreplicated_seconds"] < LONGEST


def test_a_clock_that_is_set_changes_neither_result_nor_lag(scratch: Path) -> None:
    with filesystem("ext4", scratch / "s") as source, filesystem("xfs", scratch / "r") as replica:
        (source / "root").mkdir()
        (replica / "root").mkdir()
        with Pair(source / "root", replica / "root", scratch / "state") as pair:
            (source / "root/still").write_bytes(content(4 * MIB))
            pair.assert_same()
            resyncs = pair.resyncs()
            for seconds in (5 * HOUR, -5 * HOUR, -5 * HOUR, 5 * HOUR):
                with Churn(source / "root/load", limit=600) as churn:
                    for change in (seconds, 0):
                        until = churn.turns + 100
                        eventually(lambda until=until: churn.turns >= until, 60, "the load goes on")  # type: ignore[misc]
                        jump(change)
                    churn.stop()
                pair.assert_same(timeout=120)
                figures_are_sane(pair)
                assert pair.connected()
            assert pair.resyncs() == resyncs
            # Who starts anew trusts times: those of before and after a jump, and those that lie in the future now.
            (source / "root/late").write_bytes(b"before")
            pair.wait()
            jump(-5 * HOUR)
            pair.kill_sender()
            (source / "root/late").write_bytes(b"after!")
            pair.start_sender()
            pair.assert_same(timeout=120)
            assert pair.wire_bytes() < 4 * MIB

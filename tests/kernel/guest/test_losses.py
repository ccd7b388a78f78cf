"""Losses of which nobody can tell the file cost a comparison of everything, and nothing else."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from replicator.capture import bpf
from replicator.capture.probes import ROOM_VARIABLE
from replicator.capture.vfs import MECHANISM
from tests.conftest import Case, on
from tests.support.deadline import eventually
from tests.support.filesystems import filesystem
from tests.support.operations import BLOCK, content
from tests.support.pair import Pair
from tests.support.programs import map_by_id, maps_of

WRITERS, WRITES = 6, 40
ONE_LOST_MAP_FULL = [0, 1, 0, 0, 0, 0, 0, 0]
"""The counts of a processor on which nothing else happened (ebpf/maps.h)."""


@on("xfs")
def test_a_loss_of_nobody_knows_what_mends_whatever_is_different(case: Case) -> None:
    """A replica's file that somebody else changed stands for what was lost."""
    for name in ("touched", "untouched"):
        (case.source / name).write_bytes(content(30_000))
    case.assert_same()
    (case.replica / "touched").write_bytes(content(20_000, 1))
    case.pair.wait()
    assert (case.replica / "touched").read_bytes() == content(20_000, 1)
    sender, resyncs = case.pair.sender, case.pair.resyncs()
    assert sender is not None
    (counts,) = [entry for entry in maps_of(sender.pid) if entry.name == "rsyncfs_counts"]
    descriptor = map_by_id(counts.id)
    try:
        bpf.update(descriptor, bytes(4), b"".join(count.to_bytes(8, "little") for count in ONE_LOST_MAP_FULL))
    finally:
        os.close(descriptor)
    case.assert_same()
    assert case.pair.resyncs() > resyncs
    assert case.pair.status()["losses"]["lost_map_full"] > 0
    assert sender.running()


def write_and_wait(file: Path, seed: int) -> None:
    """Writes that wait for the disk each, over what is there."""
    fd = os.open(file, os.O_WRONLY | os.O_DSYNC)
    try:
        for number in range(WRITES):
            os.pwrite(fd, content(BLOCK, seed + number), number * BLOCK)
    finally:
        os.close(fd)


def test_probes_that_miss_returns_cost_a_comparison(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for one call at a time, and several are under way."""
    monkeypatch.setenv(MECHANISM, "kprobe")
    monkeypatch.setenv(ROOM_VARIABLE, "1")
    replica = scratch / "replica"
    replica.mkdir()
    with filesystem("ext4", scratch / "source") as source:
        files = [source / str(number) for number in range(WRITERS)]
        for file in files:
            file.write_bytes(content(WRITES * BLOCK))
        with Pair(source, replica, scratch / "state") as pair:
            sender, resyncs = pair.sender, pair.resyncs()
            threads = [threading.Thread(target=write_and_wait, args=(file, 100 * at)) for at, file in enumerate(files)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            pair.assert_same()
            assert pair.status()["losses"]["probe_missed"] > 0
            cause = 'rsyncfs_events_dropped_total{cause="probe_missed"}'
            eventually(lambda: pair.metrics()[cause] > 0, 10, "the metric tells of missed returns")
            assert pair.resyncs() > resyncs
            assert pair.sender is sender
            assert pair.healthy()

"""What changed while nobody looked is compared block by block: little travels, and both sides end the same."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Stage, on
from tests.support.operations import KIB, MIB, content
from tests.support.oracle import differences
from tests.support.pair import Pair
from tests.support.proxy import CountingProxy

pytestmark = [pytest.mark.native, on("ext4", "btrfs", "xfs-to-ext4")]

SIZE = 64 * MIB
RECORDS = 300_000
"""More than the ring holds."""
LITTLE = 256 * KIB
"""Bytes on the wire for a gap, beside what changed: digests, facts."""


def pair_of(stage: Stage, **options: Any) -> Pair:
    """A pair of the test's own, not started."""
    stage.rounds += 1
    source, replica = (mount / f"own{stage.rounds}" for mount in (stage.source_mount, stage.replica_mount))
    source.mkdir()
    replica.mkdir()
    state = stage.directory / f"own-state{stage.rounds}"
    state.mkdir()
    return Pair(source, replica, state, send_options=["--detach-hooks"], **options)


def stop_sender(pair: Pair) -> None:
    """From here on nobody sees what changes. What was there when it began is in no journal, which would tell."""
    assert pair.sender is not None
    pair.sender.stop()
    pair.sender = None


def patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def keeping_its_time(path: Path, act: Callable[[Path], None]) -> None:
    before = path.stat()
    act(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def store(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[5 * MIB : 5 * MIB + 3] = b"xyz"


def at_both_ends(path: Path) -> None:
    patch(path, 0, b"first")
    patch(path, SIZE - 4, b"last")


def punch(path: Path) -> None:
    subprocess.run(["fallocate", "-p", "-o", str(8 * MIB), "-l", str(4 * MIB), path], check=True)


CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "one block": (lambda path: patch(path, 33 * MIB + 77, content(4 * KIB, 2)), 4 * KIB),
    "its ends": (at_both_ends, KIB),
    "its time kept": (lambda path: keeping_its_time(path, lambda kept: patch(kept, 9 * MIB, b"new")), KIB),
    "longer": (lambda path: patch(path, SIZE, content(100 * KIB, 3)), 100 * KIB),
    "longer by a hole": (lambda path: os.truncate(path, 2 * SIZE), 0),
    "shorter": (lambda path: os.truncate(path, SIZE // 2 + 5), 0),
    "a hole": (punch, 0),
    "a store": (store, KIB),
    "only its time": (lambda path: os.utime(path, ns=(1, 1)), 0),
    "a new name": (lambda path: path.rename(path.with_name("renamed")), 0),
    "rewritten": (lambda path: path.write_bytes(content(SIZE, 5)), SIZE),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_while_no_sender_ran(stage: Stage, change: str) -> None:
    act, changed = CHANGES[change]
    pair = pair_of(stage)
    path = pair.source / "file"
    path.write_bytes(content(SIZE))
    with pair:
        stop_sender(pair)
        act(path)
        pair.start_sender()
        assert differences(pair.source, pair.replica, holes=True) == [], "ready means in step"
        assert changed <= pair.wire_bytes() <= changed + LITTLE


def test_a_change_while_neither_ran(stage: Stage) -> None:
    """After its own restart the receiver does not know whether what it has is sound."""
    pair = pair_of(stage)
    path = pair.source / "file"
    path.write_bytes(content(SIZE))
    with pair:
        patch(path, 7 * MIB, b"unfinished")
        pair.kill_receiver()
        stop_sender(pair)
        patch(path, 9 * MIB, b"unseen")
        pair.start_receiver()
        pair.start_sender()
        assert differences(pair.source, pair.replica) == []
        assert pair.wire_bytes() <= LITTLE


def test_a_copy_from_elsewhere_is_adopted_and_mended(stage: Stage) -> None:
    pair = pair_of(stage, adopt=True)
    sparse = 1 << 36
    for name, size in (("same", MIB), ("differs", SIZE), ("older", MIB), ("small", 9000), ("linked", MIB)):
        (pair.source / name).write_bytes(content(size))
    with (pair.source / "sparse").open("wb") as file:
        os.truncate(file.fileno(), sparse)
        os.pwrite(file.fileno(), content(MIB, 4), sparse // 2)
    subprocess.run(["cp", "-a", f"{pair.source}/.", pair.replica], check=True)
    patch(pair.replica / "differs", 12 * MIB, b"not the same")
    os.utime(pair.replica / "older", ns=(1, 1))
    patch(pair.replica / "small", 12, b"not the same")
    patch(pair.replica / "sparse", sparse // 4, b"where nothing is")
    patch(pair.replica / "linked", 12, b"not the same")
    yesterday = pair.replica.with_name(pair.replica.name + "-yesterday")
    os.link(pair.replica / "linked", yesterday)
    before = yesterday.read_bytes()
    with pair:
        pair.assert_same(holes=True)
        assert pair.wire_bytes() <= LITTLE
        assert yesterday.read_bytes() == before, "who has a name elsewhere keeps what he has"


def test_a_writer_that_never_pauses_is_not_waited_for(stage: Stage) -> None:
    """The file is written while it is compared; nothing of it is lost, and nothing of the rest is late."""
    pair = pair_of(stage)
    path = pair.source / "file"
    path.write_bytes(content(SIZE))
    with pair:
        for round in range(3):
            stop_sender(pair)
            patch(path, (round + 1) * MIB, content(4 * KIB, round + 7))
            pair.start_sender(ready=False)
            assert pair.sender is not None
            number = 0
            while "ready" not in pair.sender.lines:
                assert pair.sender.running(), pair.sender.text()
                patch(path, number * 4099 % SIZE, b"%8d" % number)
                number += 1
                if number % 50 == 0:
                    os.truncate(path, SIZE - number)
                    patch(path, SIZE - 8, b"the end.")
            assert number > 0
            pair.assert_same()


@pytest.mark.parametrize("cut", ["connection", "receiver", "sender"])
def test_a_comparison_that_is_cut_off_begins_anew(stage: Stage, cut: str) -> None:
    pair = pair_of(stage)
    with CountingProxy("127.0.0.1", pair.port) as proxy:
        pair.connect = f"127.0.0.1:{proxy.port}"
        path = pair.source / "file"
        path.write_bytes(content(SIZE) * 4)
        with pair:
            stop_sender(pair)
            patch(path, 4 * SIZE - MIB, content(4 * KIB, 7))
            # The greeting and the word to the first epoch are some 500 bytes, the answers to 32 questions 2000 more.
            proxy.stall(1000)
            pair.start_sender(ready=False)
            assert proxy.stalled.wait(60)
            assert pair.sender is not None
            assert "ready" not in pair.sender.lines
            if cut == "receiver":
                pair.kill_receiver()
            elif cut == "sender":
                pair.kill_sender()
            proxy.cut()
            proxy.mend()
            if cut == "receiver":
                pair.restart_receiver()
            elif cut == "sender":
                pair.start_sender(ready=False)
            pair.sender.ready()
            assert differences(pair.source, pair.replica) == []
            assert pair.wire_bytes() <= 2 * LITTLE


def test_records_that_the_kernel_lost(stage: Stage) -> None:
    """The ring overflows while the sender stands still: the file is compared, not sent."""
    pair = pair_of(stage)
    path = pair.source / "file"
    path.write_bytes(content(SIZE))
    with pair:
        assert pair.sender is not None
        before = pair.wire_bytes()
        os.kill(pair.sender.pid, signal.SIGSTOP)
        try:
            with path.open("r+b") as file:
                for number in range(RECORDS):
                    os.pwrite(file.fileno(), b"x", number * 3 % MIB)
        finally:
            os.kill(pair.sender.pid, signal.SIGCONT)
        pair.assert_same()
        assert pair.status()["losses"]["ring_full"] > 0
        assert pair.wire_bytes() - before < SIZE // 2

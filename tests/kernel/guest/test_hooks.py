"""What a sender leaves in the kernel, however it ends: its hooks, until `unhook`.

In a machine of its own nobody else has any.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from replicator.capture.probes import tracing
from replicator.capture.vfs import MECHANISM
from replicator.keeper.hooks import unhook
from tests.native.keeping import Watcher, forked, kill_readers, programs, write
from tests.support.deadline import eventually
from tests.support.filesystems import filesystem
from tests.support.pair import Pair
from tests.support.programs import listed

KINDS = {"prog": "programs", "map": "maps", "link": "links"}
SENSORS = {"fexit": "vfs", "kprobe": "vfs", "": "tracepoint"}


def loaded() -> set[str]:
    """Every BPF program, map and link of this kernel, and every kernel probe of ours, in words."""
    found = {f"{kind} {entry.id} {entry.type} {entry.name}" for kind in KINDS for entry in listed(kind)}
    return found | {line for line in (tracing() / "kprobe_events").read_text().splitlines() if "rsyncfs" in line}


@pytest.mark.parametrize(("mechanism", "sensor"), SENSORS.items(), ids=lambda word: word or "none")
def test_hooks_see_what_happens_while_nobody_runs(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str, sensor: str
) -> None:
    monkeypatch.setenv(MECHANISM, mechanism)
    state = scratch / "state"
    state.mkdir()
    before = loaded()
    with filesystem("ext4", scratch / "source") as source:
        file = source / "file"
        go, told = os.pipe()

        def first() -> None:
            with Watcher(source, state, sensor=sensor) as watcher:
                write(file, 0, 10)
                watcher.offsets(file)
                watcher.told()
                os.write(told, b"x")
                signal.pause()

        try:
            with forked(first):
                assert os.read(go, 1) == b"x"
            hooks = programs(state)
            there = loaded()
            offsets = write(file, 10, 100)
            (source / "new").touch()
            with Watcher(source, state, sensor=sensor) as watcher:
                assert not watcher.sensor.not_kept
                assert watcher.adopted, watcher.sensor.not_adopted
                assert programs(state) == hooks
                assert any(mechanism in item.mechanism for item in watcher.sensor.coverage())
                assert watcher.offsets(file) == offsets
                assert watcher.told() == {b"new"}
                losses = watcher.sensor.losses()
                assert not any(losses.values()), losses
            assert loaded() == there
            kill_readers(source, state, scratch, 5, sensor)
            with Watcher(source, state, sensor=sensor, lost_inodes=512) as watcher:
                assert not watcher.adopted
                assert not programs(state) & hooks
                eventually(lambda: len(loaded()) == len(there), 10, "what was replaced is gone")
        finally:
            unhook(state)
        eventually(lambda: loaded() <= before, 10, "all is gone")


def test_nothing_of_a_sender_remains_in_the_kernel_once_it_is_unhooked(scratch: Path) -> None:
    with filesystem("xfs", scratch / "source") as source:
        replica = scratch / "replica"
        replica.mkdir()
        before = loaded()
        pair = Pair(source, replica, scratch / "state").start()
        try:
            hooks: set[int] = set()
            for how in ("SIGKILL", "SIGTERM"):
                (source / "file").write_text(f"seen before {how}")
                pair.assert_same()
                assert pair.sender is not None
                if how == "SIGKILL":
                    pair.kill_sender()
                else:
                    pair.sender.stop()
                hooks = hooks or programs(pair.send_state)
                assert hooks
                (source / "file").write_text(f"seen after {how}")
                pair.start_sender()
                assert programs(pair.send_state) == hooks
                assert pair.status()["hooks"]["adopted"]
                pair.assert_same()
            pair.stop()
            eventually(lambda: loaded() <= before, 10, "all that the sender had loaded is gone")
        finally:
            pair.kill()

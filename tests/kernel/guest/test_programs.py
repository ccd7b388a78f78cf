"""The kernel's verifier takes every program, and what cannot be attached costs only its family."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from replicator.capture.bpf_sensor import BpfSensor
from replicator.capture.event import EventKind
from replicator.capture.sensor import Coverage
from replicator.capture.tracepoint import MODIFY, TracepointSensor
from replicator.capture.vfs import MECHANISM, VfsSensor
from tests.native.traced import Traced, traced
from tests.support.programs import crowded

WAYS = {
    "fexit": (VfsSensor, "fexit"),
    "kprobe": (VfsSensor, "kprobe"),
    "tracepoint": (TracepointSensor, ""),
}


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "tmpfs"])
@pytest.mark.parametrize("way", WAYS)
def test_the_verifier_takes_every_program(monkeypatch: pytest.MonkeyPatch, way: str, fstype: str) -> None:
    """What is left out is what this kernel does not have."""
    kind, mechanism = WAYS[way]
    monkeypatch.setenv(MECHANISM, mechanism)
    logs: list[str] = []
    real = BpfSensor.coverage

    def coverage(self: BpfSensor) -> list[Coverage]:
        logs.extend(item.log for item in self._attached().excluded)
        return real(self)

    monkeypatch.setattr(BpfSensor, "coverage", coverage)
    told = kind().trial(fstype)
    wrong = [item for item in told if not item.covered and (item.refused or kind is VfsSensor)]
    assert not wrong, "\n".join([*map(str, wrong), *(log[-2000:] for log in logs)])
    assert [item for item in told if item.covered and not item.instructions and item.mechanism != MODIFY] == []


def touched(place: Traced) -> None:
    """Some of the ways to write, each of which must be seen."""
    with place.file(b"x" * 10_000) as fd:
        os.pwrite(fd, b"y" * 10, 5)
        assert place.records(fd).covers(5, 10)
        os.pwritev(fd, [b"y" * 3000, b"z" * 3000], 20_000)
        assert place.records(fd).covers(20_000, 6000)
        os.ftruncate(fd, 123)
        assert place.records(fd).lowest == 123
        os.copy_file_range(fd, fd, 100, 0, 4096)
        assert place.records(fd).covers(4096, 100)


def test_a_full_function_is_probed_instead(tmp_path: Path) -> None:
    with crowded("vfs_link"), traced("ext4", tmp_path / "fs", made=VfsSensor) as place:
        told = {item.mechanism for item in place.sensor.coverage() if item.covered}
        assert {"kprobe vfs_link", "kretprobe vfs_link", "fexit vfs_unlink"} <= told
        assert place.sensor.tells_names
        path = place.path()
        path.touch()
        place.drain()
        os.link(path, place.path())
        assert EventKind.NAME in place.drain()["kind"]
        touched(place)


def test_names_that_cannot_be_told_are_left_to_fanotify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MECHANISM, "fexit")
    with crowded("vfs_link"), traced("ext4", tmp_path / "fs", made=VfsSensor) as place:
        assert not place.sensor.tells_names
        told = place.sensor.coverage()
        assert [item.mechanism for item in told if not item.covered] == ["fexit or kretprobe vfs_link"]
        assert MODIFY in [item.mechanism for item in told]
        touched(place)


def test_writes_that_cannot_be_told_are_left_to_the_filesystems_tracepoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MECHANISM, "fexit")
    full = "ext4_file_write_iter"
    with crowded(full, "ext4"), traced("ext4", tmp_path / "fs", made=VfsSensor) as place:
        assert place.sensor.tells_names
        told = {item.mechanism: item.covered for item in place.sensor.coverage()}
        assert not told[f"fexit or kretprobe {full}"]
        assert told["raw tracepoint ext4_da_write_end"]
        assert told["fexit notify_change"]
        touched(place)

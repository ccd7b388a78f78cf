"""What the vfs sensor takes in place of functions that cannot be hooked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from replicator.capture import vfs
from replicator.capture.btf import Btf, Types
from replicator.capture.sensor import Filesystem
from replicator.capture.tracepoint import NEWER
from replicator.capture.vfs import Mechanisms, VfsSensor
from tests.unit.capture.made_btf import kernel


class Loading(VfsSensor):
    """Records what would be loaded, on a kernel that refuses the functions of some families."""

    def __init__(self, refused: set[str]) -> None:
        super().__init__()
        self.refused = refused
        self.loads: list[tuple[set[str], bool]] = []

    def _load(self, source: Any, families: Sequence[str], types: Types, defines: Sequence[str] = (), **_: Any) -> None:
        self.loads.append((set(families), "RSYNCFS_VFS_WRITE" in defines))

    def _lacking(self, families: tuple[str, ...]) -> list[str]:
        return sorted(self.refused & set(families))

    def _told_bytes(self, fstype: str) -> bool:
        return True


def loaded(monkeypatch: pytest.MonkeyPatch, *refused: str) -> Loading:
    maker = kernel()
    for name in NEWER:
        maker.tracepoint(name)
    monkeypatch.setattr(vfs, "mechanisms", lambda types: Mechanisms(None, "no probes here"))
    sensor = Loading(set(refused))
    sensor._prepare(Filesystem("ext4", 1), Btf(maker.blob()), attach=True)
    return sensor


def test_functions_alone_where_all_can_be_hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = loaded(monkeypatch)
    ((families, writes),) = sensor.loads
    assert {"vfs_write", "vfs_names", "iomap", "net"} <= families
    assert "ext4" not in families
    assert writes
    assert sensor.tells_names


def test_direct_writes_are_told_by_their_tracepoint_where_the_write_itself_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tracepoint leaves a write whose caller waits to the function: not if that cannot be hooked."""
    sensor = loaded(monkeypatch, "vfs_write")
    families, writes = sensor.loads[-1]
    assert {"ext4", "inode", "iomap"} <= families
    assert not writes
    assert sensor.tells_names


def test_tracepoints_help_out_beside_writes_that_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    families, writes = loaded(monkeypatch, "vfs_mapping").loads[-1]
    assert "ext4" in families
    assert writes


@pytest.mark.parametrize("family", ["vfs_names", "vfs_attributes", "vfs_size"])
def test_names_come_by_fanotify_where_a_function_of_theirs_is_missing(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    sensor = loaded(monkeypatch, family)
    assert not sensor.tells_names
    assert [item.mechanism for item in sensor._besides] == ["fanotify FAN_MODIFY"]

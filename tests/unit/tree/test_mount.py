"""What the mount table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.tree.mount import mount_of

TABLE = b"""\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
22 21 259:0 / /pmem rw,relatime shared:2 - xfs /dev/pmem0 rw,attr2,dax=always,inode64
23 21 259:1 / /pmem1 rw shared:3 - ext4 /dev/pmem1 rw,dax
24 21 259:2 / /pmem2 rw shared:4 - xfs /dev/a\\040disk ro,dax=never
"""


def test_mounts_with_dax_are_told_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda self: TABLE)
    assert [mount_of(number).dax for number in (21, 22, 23, 24)] == [False, True, True, False]
    assert mount_of(24).source == b"/dev/a disk"
    assert mount_of(24).read_only
    assert mount_of(22).kernel_dev == 259 << 20
    with pytest.raises(KeyError):
        mount_of(25)

"""What clients of this kernel's NFS server do to the tree: its threads write, and no process is to be seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Case, on
from tests.support import syscalls
from tests.support.nfs import Missing, exported, let_read
from tests.support.operations import MIB, content

pytestmark = [pytest.mark.native, on("xfs")]

READER = 4711


def test_changes_through_nfs_are_replicated(
    case: Case, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    point = scratch / "client"
    point.mkdir()
    (case.source / "old").write_bytes(content(MIB))
    case.assert_same()
    try:
        with exported(case.source, point):
            change(point)
    except Missing as refusal:
        record_property("refusal", str(refusal))
        return
    assert (case.source / "directory" / "renamed").stat().st_size == 345_678
    assert b"\x04" in os.getxattr(case.source / "old", "system.posix_acl_access")
    case.assert_same()


def change(point: Path) -> None:
    """All that NFS knows of."""
    (point / "directory").mkdir(mode=0o750)
    (point / "new").write_bytes(content(300_000, 1))
    (point / "new").rename(point / "directory" / "renamed")
    os.truncate(point / "directory" / "renamed", 345_678)
    with (point / "old").open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"through the network", 12_345)
        os.fsync(file.fileno())
        syscalls.fallocate(file.fileno(), syscalls.PUNCH_HOLE | syscalls.KEEP_SIZE, 300_000, 100_000)
        os.ftruncate(file.fileno(), 900_000)
        with (point / "copy").open("wb", buffering=0) as copy:
            os.copy_file_range(file.fileno(), copy.fileno(), 500_000, 0, 0)
    os.chmod(point / "old", 0o604)
    let_read(point / "old", READER)
    os.chown(point / "copy", 7, 8)
    os.utime(point / "copy", ns=(10**18, 10**18 + 1))
    os.setxattr(point / "copy", "user.note", b"through NFS")
    os.link(point / "copy", point / "directory" / "link")
    os.symlink("copy", point / "symbolic")
    os.mkfifo(point / "fifo")
    (point / "brief").write_bytes(b"brief")
    (point / "brief").unlink()

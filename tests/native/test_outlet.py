"""A disk that forgets: what was synced is there after a cut, and what was not is not, or not for certain."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from tests.support.operations import BLOCK
from tests.support.outlet import Outlet
from tests.support.syscalls import syncfs

pytestmark = pytest.mark.native


def sync(point: Path) -> None:
    fd = os.open(point, os.O_RDONLY)
    try:
        syncfs(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_what_was_synced_survives_and_what_was_not_can_be_lost(fstype: str, scratch: Path) -> None:
    lost = 0
    with Outlet(fstype, scratch / "outlet", seed=3, size=512 << 20) as outlet:
        for number in range(4):
            (outlet.point / f"synced{number}").write_bytes(b"x" * 300_000)
            sync(outlet.point)
            with (outlet.point / f"synced{number}").open("r+b") as file:
                os.pwrite(file.fileno(), b"y" * 300_000, 0)
            (outlet.point / f"lost{number}").write_bytes(b"z" * 100_000)
            outlet.cut()
            outlet.off()
            outlet.boot()
            names = os.listdir(outlet.point)
            assert {f"synced{known}" for known in range(number + 1)} <= set(names)
            lost += f"lost{number}" not in names
            for known in range(number):
                assert set((outlet.point / f"synced{known}").read_bytes()) <= set(b"xy")
    assert lost >= 3


def test_of_what_reached_the_disk_and_was_not_flushed_some_is_lost_and_some_is_not(scratch: Path) -> None:
    blocks, lost, kept = 64, 0, 0
    with Outlet("ext4", scratch / "outlet", seed=3, size=512 << 20) as outlet, mmap.mmap(-1, BLOCK) as aligned:
        for number in range(1, 7):
            file = outlet.point / "file"
            file.write_bytes(b"0" * blocks * BLOCK)
            sync(outlet.point)
            fd = os.open(file, os.O_WRONLY | os.O_DIRECT)
            aligned[:] = b"%d" % number * BLOCK
            for block in range(blocks):
                os.pwritev(fd, [aligned], block * BLOCK)
            os.close(fd)
            outlet.cut()
            outlet.off()
            outlet.boot()
            left = (outlet.point / "file").read_bytes()
            assert set(left) <= set(b"0%d" % number)
            lost += left.count(b"0") // BLOCK
            kept += left.count(b"%d" % number) // BLOCK
    assert lost > blocks
    assert kept > blocks


def test_nothing_is_lost_without_a_cut(scratch: Path) -> None:
    with Outlet("ext4", scratch / "outlet", seed=3, size=512 << 20) as outlet:
        (outlet.point / "file").write_bytes(b"x" * 300_000)
        outlet.off()
        outlet.boot()
        assert (outlet.point / "file").read_bytes() == b"x" * 300_000

"""Disks that device-mapper makes sick below the replica, and an ext4 that is extended while it is in use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from tests.support.filesystems import MKFS, filesystem, run, unmount
from tests.support.operations import KIB, MIB, content
from tests.support.pair import Pair

PATIENCE = 60.0
SECTORS = 400 * MIB // 512


class Mapped:
    """A device of device-mapper on a loop device, whose table can be exchanged."""

    def __init__(self, name: str, loop: str) -> None:
        self._name, self._loop = name, loop
        self.device = Path("/dev/mapper") / name

    def table(self, target: str) -> None:
        """`target` is "linear", "error", or "flakey" (up for no second, then failing every write)."""
        line = {
            "linear": f"0 {SECTORS} linear {self._loop} 0",
            "error": f"0 {SECTORS} error",
            "flakey": f"0 {SECTORS} flakey {self._loop} 0 0 3600 1 error_writes",
        }[target]
        # Without flushing: what is not written yet shall meet the new table.
        run("dmsetup", "suspend", "--noflush", "--nolockfs", self._name)
        run("dmsetup", "load", self._name, "--table", line)
        run("dmsetup", "resume", "--noudevsync", self._name)


@pytest.fixture
def mapped(scratch: Path) -> Iterator[Mapped]:
    run("modprobe", "-a", "dm-mod", "dm-flakey")
    image = scratch / "disk"
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    loop = run("losetup", "--find", "--show", image).strip()
    name = f"rsyncfs{os.getpid()}"
    # There may be no udev to make names.
    run("dmsetup", "create", name, "--noudevsync", "--table", f"0 {SECTORS} linear {loop} 0")
    run("dmsetup", "mknodes", name)
    try:
        yield Mapped(name, loop)
    finally:
        run("dmsetup", "remove", "--retry", "--noudevsync", name)
        run("losetup", "--detach", loop)


@pytest.mark.parametrize("target", ["error", "flakey"])
def test_a_disk_that_fails_and_is_mounted_again(scratch: Path, mapped: Mapped, target: str) -> None:
    """Nothing is called durable that is not; after the disk is well and mounted again both sides are the same."""
    run(*MKFS["ext4"], mapped.device)
    mounted = scratch / "r"
    mounted.mkdir()
    run("mount", mapped.device, mounted)
    try:
        with filesystem("ext4", scratch / "s") as source:
            (mounted / "root").mkdir()
            with Pair(source, mounted / "root", scratch / "state") as pair:
                (source / "file").write_bytes(content(100 * KIB))
                pair.assert_same()
                mapped.table(target)
                (source / "file").write_bytes(content(100 * KIB, 1))
                (source / "new").write_bytes(content(100 * KIB, 2))
                assert pair.receiver is not None
                receiver = pair.receiver

                def said() -> bool:
                    return "cannot be synced" in receiver.text() or "cannot apply" in receiver.text()

                eventually(said, PATIENCE, "the receiver says so")
                assert pair.try_wait(1)[0] == 1
                assert pair.healthy()
                pair.kill_receiver()
                mapped.table("linear")
                unmount(mounted)
                run("mount", mapped.device, mounted)
                pair.restart_receiver()
                pair.assert_same(timeout=PATIENCE)
    finally:
        with contextlib.suppress(AssertionError):
            mapped.table("linear")
        unmount(mounted)


def test_an_ext4_that_is_extended_while_it_is_full(scratch: Path) -> None:
    with filesystem("ext4", scratch / "s") as source, filesystem("ext4", scratch / "r", 64 * MIB) as mounted:
        (mounted / "root").mkdir()
        with Pair(source, mounted / "root", scratch / "state") as pair:
            for number in range(12):
                (source / f"big{number}").write_bytes(content(8 * MIB, number))
            eventually(lambda: pair.status()["refused_files"] > 0, PATIENCE, "the replica refuses some")
            with (scratch / "r/image").open("r+b") as file:
                file.truncate(256 * MIB)
            device = run("findmnt", "--noheadings", "--output", "SOURCE", str(mounted)).strip()
            run("losetup", "--set-capacity", device)
            run("resize2fs", device)
            pair.assert_same(timeout=PATIENCE)

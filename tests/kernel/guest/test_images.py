"""An image in the tree that is a loop device's: the kernel's own threads write to it, trim it, and punch it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Case, on
from tests.support import syscalls
from tests.support.filesystems import run, unmount
from tests.support.operations import MIB, content
from tests.support.oracle import data_ranges

pytestmark = [pytest.mark.native, on("xfs")]

SLACK = MIB // 2


def data(path: Path) -> int:
    """Bytes of a file that are no hole, on the disk."""
    with path.open("rb") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return sum(end - start for start, end in data_ranges(file.fileno(), path.stat().st_size))


@contextlib.contextmanager
def attached(image: Path, *options: str) -> Iterator[str]:
    """The loop device of an image."""
    device = run("losetup", "--find", "--show", *options, image).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(device: str, point: Path) -> Iterator[Path]:
    run("mount", device, point)
    try:
        yield point
    finally:
        unmount(point)


@pytest.mark.parametrize("options", [[], ["--direct-io=on"]], ids=["through the cache", "direct"])
def test_an_image_that_is_mounted_is_replicated(case: Case, scratch: Path, options: list[str]) -> None:
    image, point = case.source / "image", scratch / "inside"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(48 * MIB)
    with attached(image, *options) as device:
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0", device)
        with mounted(device, point):
            (point / "kept").write_bytes(content(3 * MIB))
            (point / "gone").write_bytes(content(6 * MIB, 1))
            os.sync()
            (point / "gone").unlink()
        case.assert_same()
        full = image.stat().st_blocks
        with mounted(device, point):
            with (point / "kept").open("r+b") as file:
                syscalls.fallocate(file.fileno(), syscalls.PUNCH_HOLE | syscalls.KEEP_SIZE, MIB, MIB)
                os.pwrite(file.fileno(), b"written again", 2 * MIB)
            os.sync()
            run("fstrim", point)
            case.pair.wait()
        with Path(device).open("r+b", buffering=0) as raw:
            os.pwrite(raw.fileno(), content(MIB, 2), 40 * MIB)
            os.fsync(raw.fileno())
        run("blkdiscard", "--zeroout", "--offset", str(40 * MIB), "--length", str(MIB // 2), device)
    assert image.stat().st_blocks < full - 4 * MIB // 512
    case.assert_same()
    # Space that is reserved and not written looks like data or a hole, as the cache has it: zeros may have travelled.
    assert data(case.replica / "image") < 512 * image.stat().st_blocks + SLACK

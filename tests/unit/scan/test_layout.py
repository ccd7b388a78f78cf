"""Where ext4's inodes lie, and what is made of a superblock that lies itself."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.errors import EnvironmentFault
from replicator.scan import ext2fs
from replicator.scan.ext2fs import Layout, read_layout
from tests.support.filesystems import make_image

SIZE = 64 * 1024 * 1024
SUPERBLOCK = 1024
DESCRIPTORS = 4096


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    make_image("ext4", tmp_path / "image", SIZE)
    fd = os.open(tmp_path / "image", os.O_RDWR)
    yield fd
    os.close(fd)


def sensible(layout: Layout) -> bool:
    """Everything lies on the device, nothing twice, and it is not more than there can be."""
    return (
        all(run.offset > 0 and run.offset + run.inodes * layout.inode_size <= SIZE for run in layout.runs)
        and all(one.first + one.inodes <= two.first for one, two in zip(layout.runs, layout.runs[1:], strict=False))
        and layout.inode_size in (128, 256, 512, 1024, 2048, 4096)
    )


def test_a_new_filesystem_has_one_run_from_its_first_inode(image: int) -> None:
    layout = read_layout(image, "/source")
    assert sensible(layout)
    assert layout.runs[0].first == 1
    assert sum(run.inodes for run in layout.runs) < 100  # the rest was never used
    assert layout.inode_size == 256
    assert layout.first_ordinary == 11


@pytest.mark.parametrize(
    ("at", "form", "value", "why"),
    [
        (56, "<H", 0, "no ext4 superblock"),
        (24, "<I", 70, "block size"),
        (32, "<I", 0, "block groups"),
        (40, "<I", 0, "block groups"),
        (40, "<I", 2**31, "block groups"),
        (0, "<I", 2**32 - 1, "counts"),
        (4, "<I", 2**32 - 1, "counts"),
        (88, "<H", 0, "inode size"),
        (88, "<H", 192, "inode size"),
        (88, "<H", 32768, "inode size"),
        (96, "<I", 2**31, "features?"),
    ],
)
def test_an_impossible_superblock_is_refused(image: int, at: int, form: str, value: int, why: str) -> None:
    os.pwrite(image, struct.pack(form, value), SUPERBLOCK + at)
    with pytest.raises(EnvironmentFault, match=rf"/source.*{why}.*--scan walk"):
        read_layout(image, "/source")


def test_a_filesystem_that_was_cut_off_is_refused(image: int) -> None:
    os.truncate(image, SIZE // 2)
    with pytest.raises(EnvironmentFault, match="smaller than its filesystem"):
        read_layout(image, "/source")
    os.truncate(image, 512)
    with pytest.raises(EnvironmentFault, match="no ext4 superblock"):
        read_layout(image, "/source")


def test_a_table_that_lies_elsewhere_is_refused(image: int) -> None:
    for block in (0, SIZE // 4096 - 1, 2**32 - 1):
        os.pwrite(image, struct.pack("<I", block), DESCRIPTORS + 8)
        with pytest.raises(EnvironmentFault, match="group 0 lies outside"):
            read_layout(image, "/source")


def test_any_bytes_are_either_refused_or_make_sense(image: int) -> None:
    rng = random.Random(1)
    superblock = os.pread(image, 1024, SUPERBLOCK)
    descriptors = os.pread(image, 64, DESCRIPTORS)
    refused = 0
    for _ in range(3000):
        for place, sound in ((SUPERBLOCK, superblock), (DESCRIPTORS, descriptors)):
            damaged = bytearray(sound)
            for _ in range(rng.choice((0, 1, 1, 2, 8))):
                at = rng.randrange(min(len(sound), 400))
                damaged[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), rng.randbytes(4), b"\x01\0\0\0"))
            os.pwrite(image, damaged[: len(sound)], place)
        try:
            layout = read_layout(image, "/source")
        except EnvironmentFault:
            refused += 1
        else:
            assert sensible(layout)
    assert 500 < refused < 2900


def test_a_missing_library_is_named_with_its_package(image: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ext2fs, "LIBRARY", "libnothing.so.2")
    ext2fs._library.cache_clear()
    with pytest.raises(EnvironmentFault, match=r"libnothing.so.2.*install e2fsprogs"):
        read_layout(image, "/source")

"""Scans on real filesystems: every inode of them, held to what statx and file handles say of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from replicator import syscalls
from replicator.scan import Scan, scan
from replicator.tree.handles import SourceRoot
from tests.native.zoo import change, populated, table, walk
from tests.support.filesystems import filesystem

pytestmark = pytest.mark.native

SIZE = 512 * 1024 * 1024


class Made(NamedTuple):
    """How a filesystem is made and mounted."""

    fstype: str
    mkfs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    size: int = SIZE


MADE = {
    "ext4": Made("ext4"),
    "ext4, inodes of 128 bytes": Made("ext4", ("-I", "128")),
    "ext4, inodes of 1024 bytes": Made("ext4", ("-I", "1024", "-O", "inline_data")),
    "ext4 without checksums": Made("ext4", ("-O", "^metadata_csum")),
    "ext4 without checksums of groups": Made("ext4", ("-O", "^metadata_csum,^uninit_bg")),
    "ext4 in clusters": Made("ext4", ("-O", "bigalloc")),
    "ext4 with inline data": Made("ext4", ("-O", "inline_data")),
    "ext4 in blocks of 1 KiB": Made("ext4", ("-b", "1024")),
    "ext4 with scattered descriptors": Made("ext4", ("-O", "meta_bg,^resize_inode")),
    "ext4 without flexible groups": Made("ext4", ("-O", "^flex_bg,^64bit")),
    "ext4 with inodes of its own": Made("ext4", ("-O", "ea_inode,large_dir,orphan_file")),
    "ext4 without a journal": Made("ext4", ("-O", "^has_journal")),
    "ext4, lazy": Made("ext4", options=("lazytime",)),
    "ext4, data in the journal": Made("ext4", options=("data=journal",)),
    "xfs": Made("xfs"),
    "xfs, lazy": Made("xfs", options=("lazytime",)),
    "btrfs": Made("btrfs"),
    "tmpfs": Made("tmpfs"),
}


@pytest.fixture(params=MADE)
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    made = MADE[request.param]
    with filesystem(made.fstype, tmp_path / "volume", made.size, made.options, made.mkfs) as point:
        yield point


@pytest.fixture(params=("ext4", "xfs", "btrfs", "tmpfs"))
def usual(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with filesystem(request.param, tmp_path / "volume", SIZE) as point:
        yield point


def begin(source: SourceRoot, how: str = "auto", since: str | None = None) -> Scan:
    """As the sender does it."""
    syscalls.syncfs(source.read_fd)
    return scan(source, how, since)


def test_every_inode_is_told_as_statx_tells_it(mounted: Path, caplog: pytest.LogCaptureFixture) -> None:
    with populated(mounted) as files, SourceRoot.open(mounted) as source:
        for how in ("auto", "walk"):
            made = begin(source, how)
            assert made.complete
            assert table(made) == walk(source)
        before = walk(source)
        change(mounted, files)
        for how in ("auto", "walk"):
            assert table(begin(source, how)) == walk(source)
        assert 20 < len(dict(walk(source).items() - before.items())) < 50
    assert not caplog.records

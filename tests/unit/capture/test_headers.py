"""The header tree: made once, complete or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from replicator.capture import headers
from replicator.errors import EnvironmentFault


def test_a_tree_is_made_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    tree = headers.header_tree(tmp_path / "cache")
    text = (tree / "include/linux/kconfig.h").read_text()
    assert "{" + "version}" not in text
    assert (tree / "include/uapi/linux/bpf.h").is_file()
    before = tree.stat().st_mtime_ns
    assert headers.header_tree(tmp_path / "cache") == tree
    assert tree.stat().st_mtime_ns == before
    assert list((tmp_path / "cache").iterdir()) == [tree]


def test_dying_half_way_leaves_no_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        with pytest.raises(EnvironmentFault, match="No space left"):
            headers.header_tree(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (headers.header_tree(tmp_path) / "include/linux/types.h").exists()


def test_a_cache_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match=r"cannot keep headers .*writable"):
        headers.header_tree(tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    ("release", "numbers"),
    [
        ("6.18.44-fc-v657", (6, 18, 44)),
        ("6.1.0-25-amd64", (6, 1, 0)),
        ("6.12", (6, 12, 0)),
        ("6.13-rc3", (6, 13, 0)),
        ("strange", (0, 0, 0)),
    ],
)
def test_versions(release: str, numbers: tuple[int, int, int]) -> None:
    assert headers.kernel_version(release) == numbers

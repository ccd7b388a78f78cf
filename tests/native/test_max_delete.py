"""`send --max-delete N`: who deletes too much by mistake does not lose the replica."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from tests.support.filesystems import filesystem
from tests.support.operations import KIB, content
from tests.support.pair import Pair, rsyncfs

pytestmark = pytest.mark.native


@pytest.fixture
def roots(scratch: Path) -> Iterator[tuple[Path, Path, Path]]:
    with filesystem("ext4", scratch / "s") as source, filesystem("xfs", scratch / "r") as replica:
        for top in (source, replica):
            (top / "root").mkdir()
        yield source / "root", replica / "root", scratch / "state"


def laid_out(source: Path) -> None:
    for directory in ("kept", "tree", "tree/below"):
        (source / directory).mkdir()
        for number in range(20):
            (source / directory / f"file{number}").write_bytes(content(KIB, number))


def holds(pair: Pair, least: int) -> None:
    """Status, its text, the metric and the log say that deletions are held."""
    sender = pair.sender
    assert sender is not None

    def held() -> bool:
        with contextlib.suppress(AssertionError):  # it is starting
            return bool(pair.status()["held_deletions"] >= least)
        return False

    eventually(held, 60, "deletions are held")
    eventually(lambda: pair.metrics()["rsyncfs_held_deletions"] >= least, 30, "the metric says so")
    assert "holding deletions" in sender.text()
    assert "holding:" in rsyncfs("status", "--state", pair.send_state).stdout


def names(top: Path) -> int:
    return sum(len(files) + len(directories) for _, directories, files in os.walk(top))


def goes_on(pair: Pair) -> None:
    """Everything else does: what is new, changed, moved, replaced."""
    kept = pair.source / "kept"
    (kept / "new").write_bytes(b"new")
    (kept / "file0").rename(pair.source / "kept/moved")
    (kept / "temporary").write_bytes(b"saved as editors save")
    (kept / "temporary").rename(kept / "file1")
    there = pair.replica / "kept"
    eventually(lambda: (there / "new").exists() and (there / "moved").exists(), 30, "names go on")
    eventually(lambda: (there / "file1").read_bytes() == b"saved as editors save", 30, "contents go on")
    eventually(lambda: not (there / "file0").exists(), 30, "what moved is not there twice")


@pytest.mark.parametrize("how", ["removed", "moved out of the tree"])
def test_what_is_too_much_stays_until_a_sender_may_delete_it(roots: tuple[Path, Path, Path], how: str) -> None:
    source, replica, state = roots
    laid_out(source)
    with Pair(source, replica, state, send_options=["--max-delete", "10"]) as pair:
        pair.assert_same()
        for number in range(8):  # as much as that is usual
            (source / f"kept/file{number + 10}").unlink()
        pair.assert_same()
        before = names(replica / "tree")
        if how == "removed":
            shutil.rmtree(source / "tree")
        else:
            (source / "tree").rename(source.with_name("elsewhere"))
        holds(pair, 30)
        goes_on(pair)
        assert names(replica / "tree") >= before - 2
        assert pair.try_wait(0.5)[0] == 1
        assert pair.sender is not None
        pair.sender.stop()
        pair.start_sender(ready=False)  # with the same limit: it is not forgotten
        holds(pair, 10)
        assert names(replica / "tree") >= before - 12
        pair.sender.stop()
        pair.send_options = ["--max-delete", "1000"]
        pair.start_sender()
        pair.assert_same()
        assert pair.status()["held_deletions"] == 0


def test_what_comes_back_is_not_held_any_more(roots: tuple[Path, Path, Path]) -> None:
    source, replica, state = roots
    laid_out(source)
    elsewhere = source.with_name("elsewhere")
    with Pair(source, replica, state, send_options=["--max-delete", "5"]) as pair:
        pair.assert_same()
        inode = (replica / "tree/below/file1").stat().st_ino
        (source / "tree").rename(elsewhere)
        holds(pair, 40)
        (source / "kept/file7").unlink()  # little, but who knows: nothing is deleted while too much is
        (elsewhere / "below/file0").unlink()
        elsewhere.rename(source / "tree")
        pair.assert_same()
        assert (replica / "tree/below/file1").stat().st_ino == inode, "it was deleted and sent again"
        assert pair.status()["held_deletions"] == 0
        eventually(lambda: pair.metrics()["rsyncfs_held_deletions"] == 0, 10, "the metric says so")


def test_a_first_comparison_deletes_no_more_either(roots: tuple[Path, Path, Path]) -> None:
    """A source of which a part is not mounted yet, say."""
    source, replica, state = roots
    laid_out(source)
    with Pair(source, replica, state) as pair:
        pair.assert_same()
    before = names(replica)
    elsewhere = source.with_name("elsewhere")
    (source / "tree").rename(elsewhere)
    (source / "kept/file3").unlink()
    (source / "kept/new").write_bytes(b"new")
    pair = Pair(source, replica, state, send_options=["--max-delete", "5"])
    pair.start_receiver()
    pair.start_sender(ready=False)
    try:
        eventually(lambda: pair.sender is not None and "holding deletions" in pair.sender.text(), 60, "it holds")
        eventually(lambda: (replica / "kept/new").exists(), 30, "everything else goes on")
        assert names(replica) >= before - 5
        assert (replica / "tree/below/file1").exists()
        elsewhere.rename(source / "tree")
        assert pair.sender is not None
        pair.sender.ready()
        pair.assert_same()
    finally:
        pair.kill()

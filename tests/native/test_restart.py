"""A sender that ends, however it ends, and comes back: what it costs, and that nothing is missing."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.conftest import Stage, on
from tests.support.deadline import eventually
from tests.support.filesystems import filesystem
from tests.support.pair import Pair

SMALL = 400
BIG = 8 << 20


def data_bytes(pair: Pair) -> int:
    """Bytes of files that the present sender has sent."""
    return int(pair.status()["data_bytes"])


def populate(pair: Pair) -> None:
    for number in range(SMALL):
        directory = pair.source / f"d{number % 8}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{number}").write_bytes(os.urandom(700))
    (pair.source / "big").write_bytes(os.urandom(BIG))


@pytest.fixture
def pair(stage: Stage) -> Pair:
    pair = stage.prepare()
    populate(pair)
    pair.start()
    pair.assert_same()
    return pair


def change(pair: Pair) -> int:
    """Some changes of each kind while nobody watches; how many bytes must travel for them."""
    source = pair.source
    (source / "d0" / "f0").write_bytes(b"changed")
    (source / "d1" / "f1").rename(source / "d2" / "moved")
    (source / "d3" / "f3").unlink()
    shutil.rmtree(source / "d4")
    (source / "d5").rename(source / "renamed")
    (source / "new").mkdir()
    (source / "new" / "file").write_bytes(b"new")
    os.link(source / "d6" / "f6", source / "new" / "link")
    (source / "d6" / "f14").chmod(0o600)
    os.setxattr(source / "d6" / "f22", "user.colour", b"green")
    (source / "d7" / "f7").unlink()
    (source / "d7" / "f7").write_bytes(b"another inode")
    return 7 + 3 + 13 + 4 * 700  # small files of which only ctime tells that they changed are read again


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_what_changed_while_no_sender_ran_is_found_and_nothing_else_is_sent(pair: Pair, how: str) -> None:
    assert pair.sender is not None
    pair.sender.kill() if how == "kill" else pair.sender.stop()
    bound = change(pair)
    pair.start_sender()
    pair.assert_same()
    assert data_bytes(pair) <= bound


def test_what_was_owed_when_the_sender_was_killed_is_told_by_the_next(pair: Pair) -> None:
    pair.kill_receiver()
    bound = change(pair)
    with (pair.source / "big").open("r+b") as file:
        file.seek(4096)
        file.write(b"x" * 4096)
    assert eventually(lambda: pair.status()["dirty_files"] > 5)
    pair.kill_sender()
    pair.restart_receiver()
    pair.start_sender()
    pair.assert_same()
    assert data_bytes(pair) <= bound + 8192  # what is compared, is compared by blocks


def test_a_lost_journal_costs_a_survey_and_nothing_else(pair: Pair) -> None:
    assert pair.sender is not None
    pair.sender.kill()
    shutil.rmtree(pair.state_dir / "send" / "journal")
    bound = change(pair)
    pair.start_sender()
    pair.assert_same()
    assert data_bytes(pair) <= 2 * bound  # the hooks told of it, and the survey may before that is in the index


@pytest.mark.parametrize("damage", ["removed", "overwritten", "emptied"])
def test_a_lost_index_costs_a_comparison_and_nothing_else(pair: Pair, damage: str) -> None:
    assert pair.sender is not None
    pair.sender.kill()
    index = pair.state_dir / "send" / "index.sqlite"
    if damage == "removed":
        for file in index.parent.glob("index.sqlite*"):
            file.unlink()
    elif damage == "overwritten":
        for file in index.parent.glob("index.sqlite-*"):
            file.unlink()
        index.write_bytes(os.urandom(40_000))
    else:
        with sqlite3.connect(index) as db:
            db.execute("DELETE FROM names")
            db.execute("DELETE FROM meta")
    bound = change(pair)
    pair.start_sender()
    pair.assert_same()
    assert data_bytes(pair) <= bound


def test_a_state_directory_that_was_set_back_is_no_danger(pair: Pair) -> None:
    """The replica has what this sender does not remember: names that came and went meanwhile too."""
    state, old = pair.state_dir / "send", pair.state_dir / "old"
    assert pair.sender is not None
    pair.sender.stop()
    shutil.copytree(state, old, ignore=shutil.ignore_patterns("control", "held"))
    pair.start_sender()
    bound = change(pair)
    (pair.source / "came").write_bytes(b"and went")
    pair.assert_same()
    pair.kill_sender()
    (pair.source / "came").unlink()
    shutil.rmtree(state)
    old.rename(state)
    pair.start_sender()
    pair.assert_same()
    assert data_bytes(pair) <= 2 * bound  # what was told meanwhile is compared, and then told again


def test_other_patterns_are_not_what_the_index_was_made_with(stage: Stage) -> None:
    pair = stage.prepare()
    populate(pair)
    pair.start()
    pair.assert_same()
    assert pair.sender is not None
    pair.sender.stop()
    pair.exclude = ["d1", *pair.exclude]
    pair.start_sender()
    pair.wait()
    assert not Path(pair.replica / "d1").exists()
    assert (pair.replica / "d2").exists()


@on("btrfs")
def test_a_survey_of_btrfs_looks_at_what_changed_since_the_last_mark_only(pair: Pair) -> None:
    def marked() -> str:
        with sqlite3.connect(f"file:{pair.send_state}/index.sqlite?mode=ro", uri=True) as db:
            row = db.execute("SELECT value FROM meta WHERE key = 'since'").fetchone()
        return str(row[0]) if row else ""

    first = eventually(marked, what="a mark is kept")
    assert pair.sender is not None
    pair.sender.stop()
    for number in range(3):  # so that what was made before is in leaves of older transactions
        (pair.source / "again").write_bytes(b"%d" % number)
        os.sync()
    pair.start_sender()
    eventually(lambda: marked() != first, what="a later mark is kept")
    pair.kill_sender()
    pair.unhook()
    (pair.source / "d1" / "f9").write_bytes(b"changed")
    pair.start_sender()
    pair.assert_same()
    assert pair.sender is not None
    said = re.search(r"(\d+) inodes scanned", pair.sender.text())
    assert said is not None
    assert int(said[1]) < SMALL


@on("ext4")
def test_a_full_state_directory_stops_nothing_and_costs_a_survey(stage: Stage, scratch: Path) -> None:
    pair = stage.prepare()
    populate(pair)
    with filesystem("tmpfs", scratch / "small", options=("size=6m",)) as small:
        (small / "send").mkdir()
        pair.state_dir.mkdir()
        pair.send_state.symlink_to(small / "send")
        pair.start()
        pair.assert_same()
        with contextlib.suppress(OSError), (small / "ballast").open("wb") as ballast:
            while True:
                ballast.write(bytes(4096))
                ballast.flush()
        numbers = iter(range(1_000_000))

        def trouble() -> str:
            (pair.source / "new" / str(next(numbers))).write_bytes(b"new")
            return str(pair.status()["state_trouble"])

        (pair.source / "new").mkdir()
        said = eventually(trouble)  # the journal's words, or the index's
        assert "No space" in said or "disk is full" in said
        pair.assert_same()
        pair.kill_sender()
        change_more(pair)
        (small / "ballast").unlink()
        pair.start_sender()
        pair.assert_same()
        assert pair.sender is not None
        assert "inodes scanned" in pair.sender.text()
        eventually(lambda: pair.status()["state_trouble"] == "")
        pair.stop()
        stage.pair = None


def change_more(pair: Pair) -> None:
    (pair.source / "d0" / "f8").write_bytes(b"changed while nobody noted it down")
    (pair.source / "d1" / "f17").unlink()
    (pair.source / "d2").rename(pair.source / "moved")

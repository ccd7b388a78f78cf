"""Trouble at the source: files that go while they are read, a source that is unmounted or replaced."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.filesystems import filesystem, make_image, run, unmount
from tests.support.operations import KIB, MIB, content
from tests.support.oracle import names
from tests.support.pair import Pair

pytestmark = pytest.mark.native

PATIENCE = 60.0


@pytest.fixture
def ground(scratch: Path) -> Iterator[tuple[Path, Path, Path]]:
    """A source of which the test may unmount the filesystem, a replica, and a directory for state."""
    image, mount = scratch / "image", scratch / "s"
    mount.mkdir()
    make_image("ext4", image)
    run("mount", "-o", "loop", image, mount)
    with filesystem("xfs", scratch / "r") as replica:
        (replica / "root").mkdir()
        (mount / "root").mkdir()
        yield mount / "root", replica / "root", scratch / "state"
    unmount(mount)


def laid_out(source: Path) -> None:
    (source / "d/e").mkdir(parents=True)
    for number in range(20):
        (source / f"d/file{number}").write_bytes(content(20 * KIB, number))
    (source / "d/e/deep").write_bytes(content(MIB))


def turned(path: Path, pick: random.Random) -> None:
    """Make the path something else than it was."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif stat.S_ISREG(path.lstat().st_mode) and pick.random() < 0.3:
            os.truncate(path, pick.randrange(100))
            return
        else:
            path.unlink()
    kind = pick.randrange(6)
    if kind < 3:
        path.write_bytes(pick.randbytes(pick.choice([0, 100, 300_000, 9 * MIB])))
    elif kind == 3:
        path.mkdir()
        (path / "in it").write_bytes(pick.randbytes(50_000))
    elif kind == 4:
        path.symlink_to("nowhere")
    else:
        os.mkfifo(path)


def test_files_that_vanish_shrink_or_turn_into_something_else_while_they_are_read(
    ground: tuple[Path, Path, Path],
) -> None:
    source, replica, state = ground
    with Pair(source, replica, state) as pair:
        threads = []
        for number in range(3):
            pick = random.Random(number)

            def work(pick: random.Random = pick, number: int = number) -> None:
                for _ in range(150):
                    turned(source / f"name{number}-{pick.randrange(4)}", pick)

            threads.append(threading.Thread(target=work))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pair.assert_same(timeout=PATIENCE)
        assert pair.sender is not None
        assert "Traceback" not in pair.sender.text(100_000)


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "while it is stopped"])
@pytest.mark.parametrize("instead", ["nothing", "an empty filesystem", "a full one", "another directory"])
def test_a_source_that_is_gone_is_not_an_empty_one(
    ground: tuple[Path, Path, Path], scratch: Path, running: bool, instead: str
) -> None:
    """It stops with a sentence, deletes nothing, and goes on when the source is back."""
    source, replica, state = ground
    laid_out(source)
    mount, image, other = scratch / "s", scratch / "image", scratch / "other"
    with Pair(source, replica, state) as pair:
        pair.assert_same()
        assert pair.sender is not None
        before = names(replica)
        if not running:
            pair.sender.stop()
        if instead == "another directory":
            source.rename(source.with_name("elsewhere"))
        else:
            run("umount", "--lazy", mount)
            if instead != "nothing":
                make_image("ext4", other, 64 * MIB)
                run("mount", "-o", "loop", other, mount)
        source.mkdir()
        if instead == "a full one":
            (source / "theirs").write_bytes(b"another's")
        if not running:
            pair.start_sender(ready=False)
        code = pair.sender.exit_code()
        said = pair.sender.text()
        assert code == 3, said
        assert "Traceback" not in said
        assert "mount" in said
        assert set(names(replica)) == set(before)
        assert (replica / "d/e/deep").read_bytes() == content(MIB)
        with contextlib.suppress(FileNotFoundError):
            (source / "theirs").unlink()
        source.rmdir()
        if instead == "another directory":
            source.with_name("elsewhere").rename(source)
        else:
            if instead != "nothing":
                unmount(mount)
            run("mount", "-o", "loop", image, mount)
        (source / "d/new").write_bytes(b"after")
        pair.start_sender()
        pair.assert_same(timeout=PATIENCE)
        assert pair.wire_bytes() < MIB, "what did not change was sent again"

"""Names: whatever becomes of them here becomes of them there, and no name ever costs the bytes behind it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import EXCLUDED_SUFFIX, Case
from tests.support.deadline import SLOW, eventually
from tests.support.operations import KIB, MIB, content
from tests.support.syscalls import RENAME_EXCHANGE, renameat2

pytestmark = pytest.mark.native

FACTS = 16 * KIB
"""What a few changes of names may cost on the wire; the files behind them have a megabyte."""
DEEP = max(100, int(1100 / SLOW))
"""Levels of a chain of directories: more than Python may recurse. A slow machine, which is there to test a kernel,
not Python, has fewer of longer names."""
LONG = b"directory" * min(28, round(SLOW))
"""A name of each: together more than a path may have."""
BIG = 10_000 if SLOW < 2 else 200
"""Files of the big directories: their facts are many times what a change of one name may cost."""


@contextlib.contextmanager
def no_data(case: Case, allowed: int = FACTS, settled: bool = False) -> Iterator[None]:
    """What happens inside reaches the replica for the price of its facts, without a rescan.

    `settled`: after waiting until nothing has to be told once more of so many inodes that it would not fit in.
    """
    if settled:
        eventually(lambda: case.pair.metrics()["rsyncfs_unsettled_inodes"] == 0, 60, "quiet inodes are told once more")
        case.pair.wait()
    sent_before, resyncs_before = case.pair.spent()
    yield
    case.assert_same()
    sent, resyncs = case.pair.spent()
    assert resyncs == resyncs_before
    used = sent - sent_before
    assert used <= allowed, f"{used} bytes on the wire for names alone"


def files(top: Path, *names: str, size: int = MIB) -> list[Path]:
    """Files below `top` with bytes of their own, their directories made on the way."""
    made = [top / name for name in names]
    for number, path in enumerate(made):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(size, number))
    return made


def outside(case: Case) -> Path:
    """A directory on the source's filesystem that is not in the tree."""
    path = case.pair.source.with_name("outside") / case.name
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_create(case: Case) -> None:
    files(case.source, "one", "two")
    (case.source / "empty").touch()
    case.assert_same()


def test_deep_directories_filled_at_once(case: Case) -> None:
    deep = case.source.joinpath(*map(str, range(60)))
    deep.mkdir(parents=True)
    for directory in (deep, *list(deep.parents)[:59]):
        (directory / "leaf").write_bytes(content(100))
    case.assert_same()


def test_deeper_than_a_path_can_say(case: Case) -> None:
    """A chain of directories whose whole path no system call takes: made, renamed at its top, and removed."""
    fds = [os.open(case.source, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        for level in range(DEEP):
            os.mkdir(LONG, dir_fd=fds[-1])
            fds.append(os.open(LONG, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fds[-1]))
            if level % 500 == 0 or level == DEEP - 1:
                fd = os.open(b"file", os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=fds[-1])
                os.write(fd, content(9000, level))
                os.close(fd)
            os.close(fds.pop(0))
    finally:
        for fd in fds:
            os.close(fd)
    case.assert_same()
    with no_data(case, settled=True):
        (case.source / os.fsdecode(LONG)).rename(case.source / "moved")
    subprocess.run(["rm", "-r", case.source / "moved"], check=True)
    case.assert_same()


def test_directories_made_and_filled_and_removed_at_once(case: Case) -> None:
    for round_number in range(50):
        deep = case.source / "d" / str(round_number) / "x" / "y"
        deep.mkdir(parents=True)
        (deep / "file").write_bytes(content(100, round_number))
        if round_number % 3 == 0:
            shutil.rmtree(case.source / "d" / str(round_number))
    case.assert_same()


def test_rename(case: Case) -> None:
    (file,) = files(case.source, "old")
    case.assert_same()
    with no_data(case):
        file.rename(case.source / "new")


def test_rename_over_an_existing_file(case: Case) -> None:
    one, two = files(case.source, "one", "two")
    case.assert_same()
    with no_data(case):
        one.rename(two)


def test_exchange_files(case: Case) -> None:
    one, two = files(case.source, "one", "deep/er/two")
    case.assert_same()
    with no_data(case):
        renameat2(one, two, RENAME_EXCHANGE)


def test_exchange_directories_at_different_depths(case: Case) -> None:
    files(case.source, "a/x", "b/c/d/y", "b/c/z")
    case.assert_same()
    with no_data(case):
        renameat2(case.source / "a", case.source / "b/c/d", RENAME_EXCHANGE)


def test_exchange_file_and_directory(case: Case) -> None:
    one, _ = files(case.source, "one", "d/two")
    case.assert_same()
    with no_data(case):
        renameat2(one, case.source / "d", RENAME_EXCHANGE)


def test_swap_through_a_temporary_name(case: Case) -> None:
    one, two = files(case.source, "one", "two")
    case.assert_same()
    with no_data(case):
        one.rename(case.source / "temporary")
        two.rename(one)
        (case.source / "temporary").rename(two)


@pytest.mark.parametrize("kind", ["files", "directories"])
def test_cycle_of_three(case: Case, kind: str) -> None:
    paths = files(case.source, *(("a", "b", "c") if kind == "files" else ("a/x", "b/y", "c/z")))
    a, b, c = (path if kind == "files" else path.parent for path in paths)
    case.assert_same()
    with no_data(case):
        c.rename(case.source / "t")
        b.rename(c)
        a.rename(b)
        (case.source / "t").rename(a)


def test_parent_and_child_change_places(case: Case) -> None:
    files(case.source, "a/b/file", "a/own")
    case.assert_same()
    with no_data(case):
        (case.source / "a/b").rename(case.source / "b")
        (case.source / "a").rename(case.source / "b/a")


def test_directory_into_its_sibling_and_back(case: Case) -> None:
    files(case.source, "one/x", "two/y")
    case.assert_same()
    with no_data(case):
        (case.source / "one").rename(case.source / "two/one")
    with no_data(case):
        (case.source / "two/one").rename(case.source / "one")


def test_rename_over_an_empty_directory(case: Case) -> None:
    files(case.source, "one/x")
    (case.source / "two").mkdir()
    case.assert_same()
    with no_data(case):
        (case.source / "one").rename(case.source / "two")


def test_file_replaced_by_directory_and_back(case: Case) -> None:
    files(case.source, "it")
    case.assert_same()
    (case.source / "it").unlink()
    files(case.source, "it/within")
    case.assert_same()
    shutil.rmtree(case.source / "it")
    files(case.source, "it")
    case.assert_same()


def test_rename_of_a_big_directory(case: Case) -> None:
    directory = case.source / "big"
    directory.mkdir()
    for number in range(BIG):
        (directory / str(number)).write_bytes(b"%d" % number)
    case.assert_same(timeout=120)
    with no_data(case, settled=True):
        directory.rename(case.source / "renamed")


def test_removal_of_a_big_directory(case: Case) -> None:
    directories = BIG // 100
    for number in range(BIG):
        path = case.source / "big" / str(number % directories) / str(number)
        if number < directories:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"%d" % number)
    case.assert_same(timeout=120)
    shutil.rmtree(case.source / "big")
    case.assert_same(timeout=120)


def test_out_of_the_tree_and_in_again(case: Case) -> None:
    (file,) = files(case.source, "file")
    files(case.source, "d/a", "d/e/b")
    away = outside(case)
    case.assert_same()
    file.rename(away / "file")
    (case.source / "d").rename(away / "d")
    case.assert_same()
    assert os.listdir(case.replica) == []
    (away / "file").write_bytes(content(1000, 9))
    (away / "d/a").unlink()
    (away / "d/e/new").write_bytes(b"while it was outside")
    case.assert_same()
    (away / "file").rename(file)
    (away / "d").rename(case.source / "d")
    case.assert_same()


def test_out_and_in_between_two_looks(case: Case) -> None:
    files(case.source, "d/a", "d/e/b")
    away = outside(case)
    case.assert_same()
    for _ in range(20):
        (case.source / "d").rename(away / "d")
        with (away / "d/a").open("ab") as file:
            file.write(b"x")
        (away / "d").rename(case.source / "d")
    case.assert_same()


def test_moved_in_while_being_written(case: Case) -> None:
    away = outside(case)
    with (away / "file").open("wb", buffering=0) as file:
        for number in range(200):
            file.write(content(1000, number))
            if number == 100:
                (away / "file").rename(case.source / "file")
    case.assert_same()


def test_hard_links(case: Case) -> None:
    (file,) = files(case.source, "d/file")
    case.assert_same()
    with no_data(case):
        os.link(file, case.source / "link1")
        os.link(file, case.source / "d/link2")
    with no_data(case):
        file.unlink()
    with no_data(case, FACTS + 4 * KIB):
        with (case.source / "link1").open("r+b") as opened:
            opened.write(b"through one, seen in both")
    with no_data(case):
        (case.source / "link1").unlink()


def test_hard_link_with_one_name_outside(case: Case) -> None:
    away = outside(case)
    (file,) = files(case.source, "file")
    os.link(file, away / "twin")
    case.assert_same()
    with (away / "twin").open("r+b") as opened:
        opened.seek(500_000)
        opened.write(b"through the outside name")
    case.assert_same()
    file.unlink()
    with (away / "twin").open("r+b") as opened:
        opened.write(b"nobody's business")
    case.assert_same()
    os.link(away / "twin", case.source / "again")
    case.assert_same()
    with (away / "twin").open("r+b") as opened:
        opened.write(b"everybody's again")
    case.assert_same()


def test_inode_number_reused_while_ranges_are_in_flight(case: Case) -> None:
    path = case.source / "reborn"
    for number in range(300 if SLOW < 2 else 100):
        path.write_bytes(content(20 * KIB, number))
        if number % 2:
            path.unlink()
            (case.source / f"other{number % 7}").write_bytes(content(10, number))
        else:
            path.rename(case.source / f"kept{number % 5}")
    case.assert_same()


def test_symlinks(case: Case) -> None:
    files(case.source, "file")
    (case.source / "good").symlink_to("file")
    (case.source / "dangling").symlink_to("/no/such/thing")
    (case.source / "long").symlink_to("x" * 1000)
    (case.source / "up").symlink_to("../../..")
    os.symlink(b"bytes \xff\n", os.fsencode(case.source / "raw"))
    case.assert_same()
    (case.source / "good").unlink()
    (case.source / "good").symlink_to("dangling")
    (case.source / "up").rename(case.source / "down")
    case.assert_same()


def test_special_files(case: Case) -> None:
    os.mkfifo(case.source / "fifo", 0o620)
    os.mknod(case.source / "null", 0o20666, os.makedev(1, 3))
    os.mknod(case.source / "block", 0o60600, os.makedev(7, 200))
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(case.source):
        made.bind("socket")
    case.assert_same()
    (case.source / "fifo").rename(case.source / "pipe")
    os.link(case.source / "null", case.source / "null2")
    (case.source / "socket").unlink()
    case.assert_same()


@pytest.mark.parametrize(
    "name",
    [b"new\nline", b"\xff\xfe\x80", b"a" * 255, b" ", b"\\x", "ünïcødé".encode(), b"*?[", b"-rf", b"\x01\x7f", b"..."],
    ids=["newline", "invalid-utf8", "255", "space", "backslash", "unicode", "glob", "option", "control", "dots"],
)
def test_odd_names(case: Case, name: bytes) -> None:
    top = os.fsencode(case.source)
    os.mkdir(os.path.join(top, name))
    with open(os.path.join(top, name, name), "wb") as file:
        file.write(content(1000))
    case.assert_same()
    with open(os.path.join(top, name, name), "r+b") as file:
        file.write(b"again")
    os.rename(os.path.join(top, name, name), os.path.join(top, b"plain"))
    os.rename(os.path.join(top, name), os.path.join(top, b"directory"))
    os.symlink(name, os.path.join(top, name))
    case.assert_same()


def test_the_reserved_name_is_the_users_too(case: Case) -> None:
    """Somebody may own the name that the replica uses for its own; in a directory and in the root itself."""
    for top in (case.source, case.pair.source):
        limbo = top / ".rsyncfs-limbo"
        limbo.mkdir()
        files(limbo, "mine", "d/mine too")
    case.assert_same()
    case.pair.assert_same(".rsyncfs-limbo")
    one, two = files(case.source, "one", "two")
    case.assert_same()
    one.rename(two)  # needs limbo
    renameat2(two, case.pair.source / ".rsyncfs-limbo/mine", RENAME_EXCHANGE)
    case.assert_same()
    case.pair.assert_same(".rsyncfs-limbo")
    shutil.rmtree(case.pair.source / ".rsyncfs-limbo")
    (case.pair.source / ".rsyncfs-limbo").write_bytes(b"a file of that name")
    case.pair.wait()
    assert (case.pair.replica / ".rsyncfs-limbo").read_bytes() == b"a file of that name"
    (case.pair.source / ".rsyncfs-limbo").unlink()
    case.pair.wait()
    assert not os.path.lexists(case.pair.replica / ".rsyncfs-limbo")


def test_saving_as_editors_do(case: Case) -> None:
    (document,) = files(case.source, "document.txt", size=10 * KIB)
    for number in range(100):
        temporary = case.source / f".document.txt.{number}"
        with temporary.open("wb") as file:
            file.write(content(10 * KIB, number))
            file.flush()
            os.fsync(file.fileno())
        backup = case.source / f"document.txt~{number % 3}"
        if number % 2:
            backup.unlink(missing_ok=True)
            os.link(document, backup)
        temporary.rename(document)
    case.assert_same()


def test_from_an_excluded_name_to_an_included_one_and_back(case: Case) -> None:
    temporary, final = case.source / f"upload{EXCLUDED_SUFFIX}", case.source / "upload"
    temporary.write_bytes(content(MIB))
    case.pair.wait()
    assert os.listdir(case.replica) == []
    with temporary.open("r+b") as file:
        file.write(b"changed while nobody was to see it")
    temporary.rename(final)
    case.assert_same()
    with final.open("r+b") as file:
        final.rename(temporary)
        case.pair.wait()
        assert os.listdir(case.replica) == []
        file.write(b"unseen again")
        temporary.rename(final)
        case.assert_same()
        file.write(b"and seen")
    case.assert_same()


def test_directory_times_after_all_of_it(case: Case) -> None:
    """Nothing that the replica did in a directory may show in its modification time."""
    files(case.source, "a/x", "b/y", "c/d/z", size=10)
    case.assert_same()
    (case.source / "a/x").rename(case.source / "b/x")
    (case.source / "b/y").unlink()
    (case.source / "c/d").rename(case.source / "a/d")
    (case.source / "c/new").touch()
    (case.source / "a/d/z").write_bytes(b"data")
    for number, directory in enumerate(("a", "a/d", "b", "c")):
        os.utime(case.source / directory, ns=(0, 1_000_000_000_000_000_000 + number))
    case.assert_same()
    os.utime(case.source, ns=(0, 999_999_999_999_999_999))
    case.assert_same()


def test_everything_at_once_by_two_hands(case: Case) -> None:
    """Two threads rename, link, remove and fill the same few names as fast as they can, a fixed number of turns."""
    names = [case.source / name for name in ("a", "b", "c", "d/a", "d/b", "d/e/a")]
    (case.source / "d/e").mkdir(parents=True)

    def work(seed: int) -> None:
        choices = content(4000, seed)
        for one, other, what, byte in zip(*[iter(choices)] * 4, strict=True):
            source, target = names[one % len(names)], names[other % len(names)]
            with contextlib.suppress(OSError):
                match what % 5:
                    case 0:
                        source.rename(target)
                    case 1:
                        os.link(source, target)
                    case 2:
                        renameat2(source, target, RENAME_EXCHANGE)
                    case 3:
                        source.unlink()
                    case _:
                        source.write_bytes(bytes([byte]) * 5000)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    case.assert_same()


def test_rename_by_another_process_in_a_namespace(case: Case) -> None:
    (file,) = files(case.source, "file")
    case.assert_same()
    with no_data(case):
        subprocess.run(["unshare", "--mount", "mv", file, case.source / "moved"], check=True)

"""Trouble on the replica: a full disk, a quota, a disk that fails, a read-only mount, what somebody else did. The
sender keeps what it owes, says so, goes on with everything else, and mends all by itself when the cause is gone."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from tests.support.filesystems import MKFS, filesystem, run, unmount
from tests.support.load import Churn
from tests.support.operations import KIB, MIB, content
from tests.support.pair import Pair, rsyncfs
from tests.support.sickdisk import sick_disk

pytestmark = pytest.mark.native


PATIENCE = 60.0


@pytest.fixture
def source(scratch: Path) -> Iterator[Path]:
    with filesystem("ext4", scratch / "s") as mounted:
        (mounted / "root").mkdir()
        yield mounted / "root"


def replica_below(mounted: Path) -> Path:
    """A root on the replica's filesystem that has nothing of the filesystem's own."""
    (mounted / "root").mkdir()
    return mounted / "root"


def says_refused(pair: Pair, why: str, least: int = 1) -> None:
    """Status, metric and log tell that something is held, and why."""
    sender = pair.sender
    assert sender is not None
    eventually(lambda: pair.status()["refused_files"] >= least, PATIENCE, "the status tells of refused files")
    eventually(lambda: pair.metrics()["rsyncfs_held_files"] >= least, PATIENCE, "the metric tells of held files")
    eventually(lambda: why in sender.text(), PATIENCE, f"the sender's log says {why!r}")
    assert pair.metrics()["rsyncfs_refusals_total"] >= least
    assert pair.metrics("receive")["rsyncfs_refusals_total"] >= least
    assert pair.metrics()["rsyncfs_oldest_unreplicated_seconds"] > 0


def mended(pair: Pair) -> None:
    """Identical without help; nothing is held any more."""
    assert pair.healthy()
    pair.assert_same(timeout=PATIENCE)
    assert pair.status()["refused_files"] == 0
    eventually(lambda: pair.metrics()["rsyncfs_held_files"] == 0, 10, "nothing is held")


def arrives(pair: Pair, name: str) -> None:
    """One file is the same on both sides although others are stuck."""

    def there() -> bool:
        with contextlib.suppress(OSError):
            return (pair.replica / name).read_bytes() == (pair.source / name).read_bytes()
        return False

    eventually(there, PATIENCE, f"{name} arrives")


def room(mounted: Path) -> int:
    """Bytes that are free."""
    status = os.statvfs(mounted)
    return status.f_bavail * status.f_frsize


def fill(ballast: Path, size: int) -> None:
    """Take so much room."""
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def more_than(churn: Churn, turns: int) -> None:
    """Let the load go on for so many turns."""
    until = churn.turns + turns
    eventually(lambda: churn.turns >= until or churn.failure is not None, 60, "the load makes its turns")


def grow(mounted: Path, image: Path, size: int) -> None:
    """Make the XFS in `image` as large as `size` bytes, while it is mounted."""
    with image.open("r+b") as file:
        file.truncate(size)
    device = run("findmnt", "--noheadings", "--output", "SOURCE", str(mounted)).strip()
    run("losetup", "--set-capacity", device)
    run("xfs_growfs", mounted)


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_a_disk_that_fills_up_and_gets_room(source: Path, scratch: Path, fstype: str) -> None:
    """XFS is extended while it is in use, from the others something is removed."""
    size = {"ext4": 64 * MIB, "xfs": 300 * MIB, "btrfs": 300 * MIB}[fstype]
    with filesystem(fstype, scratch / "r", size) as mounted:
        with Pair(source, replica_below(mounted), scratch / "state") as pair:
            (source / "kept").write_bytes(content(MIB))
            (source / "grows").write_bytes(content(MIB))
            pair.assert_same()
            ballast = scratch / "r/mount/ballast"
            fill(ballast, room(mounted) - 8 * MIB)
            for number in range(20):
                (source / f"big{number}").write_bytes(content(MIB, number))
            with (source / "grows").open("ab") as file:
                file.write(content(32 * MIB, 99))
            (source / "kept").rename(source / "renamed")
            says_refused(pair, "No space left on device")
            assert (pair.replica / "grows").stat().st_size >= MIB
            assert (pair.replica / "grows").read_bytes()[:MIB] == content(MIB)
            with (source / "renamed").open("r+b") as file:
                file.write(b"in place")
            (source / "little").write_bytes(b"there is room for this")
            if fstype != "btrfs":  # which needs room for everything
                arrives(pair, "renamed")
                arrives(pair, "little")
            if fstype == "xfs":
                grow(mounted, scratch / "r/image", size * 4)
            else:
                ballast.unlink()
            mended(pair)


def test_a_disk_that_fills_up_under_load(source: Path, scratch: Path) -> None:
    with filesystem("ext4", scratch / "r", 64 * MIB) as mounted:
        with Pair(source, replica_below(mounted), scratch / "state") as pair:
            pair.wait()
            ballast = scratch / "r/mount/ballast"
            with Churn(source / "load") as churn:
                more_than(churn, 500)
                fill(ballast, room(mounted) - 128 * KIB)
                (source / "big").write_bytes(content(4 * MIB))
                says_refused(pair, "No space left on device")
                more_than(churn, 1000)
                ballast.unlink()
                more_than(churn, 300)
                churn.stop()
            mended(pair)


def test_a_quota_on_the_replica(source: Path, scratch: Path) -> None:
    with filesystem("btrfs", scratch / "r", 400 * MIB) as mounted:
        replica = mounted / "root"
        run("btrfs", "subvolume", "create", replica)
        run("btrfs", "quota", "enable", mounted)
        run("btrfs", "qgroup", "limit", "8M", replica)
        with Pair(source, replica, scratch / "state") as pair:
            (source / "before").write_bytes(content(MIB))
            pair.assert_same()
            (source / "much").write_bytes(content(16 * MIB))
            says_refused(pair, "Disk quota exceeded")
            (source / "before").rename(source / "renamed")
            (source / "little").write_bytes(content(100))
            says_refused(pair, "Disk quota exceeded", 2)
            assert sum((replica / name).exists() for name in ("before", "renamed")) == 1
            run("btrfs", "qgroup", "limit", "200M", replica)
            mended(pair)


def blocks_of(file: Path) -> tuple[int, int]:
    """Where on its device a file of one piece lies, in bytes."""
    found = re.search(r"^ *0: +0\.\. *\d+: +(\d+)\.\. *(\d+):", run("filefrag", "-v", file), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 4096, (int(found[2]) + 1) * 4096


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_a_bad_spot_under_one_file(source: Path, scratch: Path, fstype: str) -> None:
    """The failure comes when the page cache is written back, long after the write has succeeded."""
    with sick_disk(scratch / "disk", 400 * MIB) as disk:
        run(*MKFS[fstype], disk.device)
        mounted = scratch / "r"
        mounted.mkdir()
        run("mount", disk.device, mounted)
        try:
            with Pair(source, replica_below(mounted), scratch / "state") as pair:
                (source / "bad").write_bytes(content(100 * KIB))
                (source / "good").write_bytes(content(100 * KIB, 1))
                pair.assert_same()
                disk.fail(*blocks_of(pair.replica / "bad"))
                for name in ("bad", "good"):
                    with (source / name).open("r+b") as file:
                        file.write(b"changed in place")
                says_refused(pair, "Input/output error")
                assert pair.try_wait(1)[0] == 1
                durable = pair.status()["durable_epoch"]
                with (source / "good").open("r+b") as file:
                    file.write(b"and once more")
                eventually(lambda: pair.status()["durable_epoch"] > durable, PATIENCE, "others become durable")
                arrives(pair, "good")
                disk.heal()
                mended(pair)
        finally:
            unmount(mounted)


def test_a_disk_that_fails_altogether_and_is_mounted_again(source: Path, scratch: Path) -> None:
    with sick_disk(scratch / "disk", 400 * MIB) as disk:
        run(*MKFS["ext4"], disk.device)
        mounted = scratch / "r"
        mounted.mkdir()
        run("mount", disk.device, mounted)
        try:
            with Pair(source, replica_below(mounted), scratch / "state") as pair:
                (source / "file").write_bytes(content(100 * KIB))
                pair.assert_same()
                disk.fail()
                (source / "file").write_bytes(content(100 * KIB, 1))
                (source / "new").write_bytes(content(100 * KIB, 2))
                assert pair.receiver is not None
                receiver = pair.receiver
                eventually(lambda: "cannot be synced" in receiver.text(), PATIENCE, "it says so")
                assert pair.try_wait(1)[0] == 1
                assert "incomplete" in rsyncfs("status", "--state", pair.receive_state).stdout

                def told() -> bool:  # once ext4 has given up, it has nothing to sync, and takes nothing
                    refused = pair.metrics()["rsyncfs_held_files"] > 0
                    return refused or "refuses for now" in pair.status()["waiting_for"]

                eventually(told, PATIENCE, "the sender says why")
                assert pair.healthy()
                pair.kill_receiver()
                disk.heal()
                unmount(mounted)
                run("mount", disk.device, mounted)
                pair.restart_receiver()
                mended(pair)
                said = rsyncfs("status", "--state", pair.receive_state).stdout
                assert "complete\n" in said
                assert "incomplete" not in said
        finally:
            unmount(mounted)


def test_a_replica_that_is_mounted_read_only_for_a_while(source: Path, scratch: Path) -> None:
    with filesystem("ext4", scratch / "r") as mounted:
        with Pair(source, replica_below(mounted), scratch / "state") as pair:
            (source / "file").write_bytes(content(MIB))
            (source / "other").write_bytes(content(MIB, 2))
            pair.assert_same()
            run("mount", "-o", "remount,ro", mounted)
            (source / "new").write_bytes(content(MIB, 3))
            (source / "file").rename(source / "renamed")
            with (source / "other").open("r+b") as file:
                file.write(b"in place")
            says_refused(pair, "Read-only file system")
            run("mount", "-o", "remount,rw", mounted)
            mended(pair)


def chattr(flag: str, path: Path) -> None:
    run("chattr", flag, path)


def test_a_stuck_file_a_stuck_directory_and_a_rename_that_waits(source: Path, scratch: Path) -> None:
    with filesystem("ext4", scratch / "r") as mounted:
        with Pair(source, replica_below(mounted), scratch / "state") as pair:
            for name in ("stuck", "other", "moved"):
                (source / name).write_bytes(content(100 * KIB))
            (source / "dir").mkdir()
            (source / "dir/in it").write_bytes(content(KIB))
            (source / "away").mkdir()
            (source / "away/in it").write_bytes(content(KIB))
            pair.assert_same()
            for name in ("stuck", "moved", "dir"):
                chattr("+i", pair.replica / name)
            try:
                with (source / "stuck").open("r+b") as file:
                    file.write(b"changed")
                (source / "moved").rename(source / "away/moved")
                (source / "dir/new").write_bytes(b"in a stuck directory")
                (source / "dir/in it").rename(source / "out of it")
                (source / "away").rename(source / "dir/away")
                says_refused(pair, "Operation not permitted", 2)
                with (source / "other").open("r+b") as file:
                    file.write(b"goes on")
                for number in range(200):
                    (source / f"free{number}").write_bytes(content(KIB, number))
                arrives(pair, "other")
                for number in range(200):
                    arrives(pair, f"free{number}")
                # Removing a name never destroys, also here.
                assert len(list(pair.replica.rglob("in it"))) >= 1
            finally:
                for name in ("stuck", "moved", "dir"):
                    chattr("-i", pair.replica / name)
            mended(pair)


def replaced(path: Path) -> Path:
    """The path, with nothing there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return path


FOREIGN: dict[str, Callable[[Path], object]] = {
    "content": lambda top: (top / "d/file").write_bytes(b"theirs"),
    "attributes": lambda top: (top / "d/file").chmod(0o600),
    "deleted": lambda top: (top / "d/file").unlink(),
    "renamed": lambda top: (top / "d/file").rename(top / "theirs"),
    "a symbolic link": lambda top: replaced(top / "d/file").symlink_to("/etc/passwd"),
    "a directory gone": lambda top: shutil.rmtree(top / "d"),
    "a directory moved": lambda top: (top / "d").rename(top / "elsewhere"),
    "a directory is a file": lambda top: replaced(top / "d").write_bytes(b"theirs"),
    "a directory is a link": lambda top: replaced(top / "d").symlink_to("/var/tmp"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_somebody_else_did_is_mended_where_the_source_changes(source: Path, scratch: Path, what: str) -> None:
    with filesystem("ext4", scratch / "r") as mounted:
        with Pair(source, replica_below(mounted), scratch / "state") as pair:
            (source / "d/e").mkdir(parents=True)
            for name in ("d/file", "d/e/deep", "other"):
                (source / name).write_bytes(content(10 * KIB))
            pair.assert_same()
            FOREIGN[what](pair.replica)
            with (source / "d/file").open("ab") as file:
                file.write(b"and more")
            (source / "d/new").write_bytes(b"new")
            (source / "other").write_bytes(b"goes on")
            arrives(pair, "other")
            assert pair.healthy()
            pair.wait(PATIENCE)
            assert pair.healthy()
            arrives(pair, "d/file")
            arrives(pair, "d/new")


def test_a_full_disk_under_the_receivers_state(source: Path, scratch: Path) -> None:
    """What cannot be noted is not done; nothing is called durable, and nothing is lost when there is room again."""
    with (
        filesystem("ext4", scratch / "r") as mounted,
        filesystem("ext4", scratch / "t", 32 * MIB) as small,
    ):
        pair = Pair(source, replica_below(mounted), scratch / "state")
        (scratch / "state").mkdir()
        pair.receive_state = small / "state"
        with pair:
            (source / "kept").write_bytes(content(MIB))
            pair.assert_same()
            ballast = small / "ballast"
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(64 * KIB))
            with contextlib.suppress(OSError), (small / "more").open("wb", buffering=0) as file:
                while True:
                    file.write(b"x")
            for number in range(2000):
                (source / f"file{number}").write_bytes(content(100, number))
            (source / "kept").rename(source / "renamed")
            assert pair.try_wait(3)[0] == 1
            assert pair.healthy()
            receiver = pair.receiver
            assert receiver is not None
            eventually(
                lambda: "No space left" in receiver.text() or "disk is full" in receiver.text(), PATIENCE, "told"
            )
            ballast.unlink()
            mended(pair)
            pair.kill_receiver()
            pair.restart_receiver()
            mended(pair)


def test_a_full_disk_under_the_senders_state(source: Path, scratch: Path) -> None:
    """It has nothing to note while it runs; starting on one, it says what to do."""
    with (
        filesystem("ext4", scratch / "r") as mounted,
        filesystem("ext4", scratch / "t", 16 * MIB) as small,
    ):
        pair = Pair(source, replica_below(mounted), scratch / "state")
        (scratch / "state").mkdir()
        pair.send_state = small / "state"
        with pair:
            pair.wait()
            ballast = small / "ballast"
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4 * KIB))
            for number in range(100):
                (source / f"file{number}").write_bytes(content(KIB, number))
            pair.assert_same(timeout=PATIENCE)
            ballast.unlink()
            mended(pair)

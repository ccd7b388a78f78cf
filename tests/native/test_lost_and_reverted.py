"""State that is lost, a replica that is set back, unmounted or replaced: recognised, and compared or refused."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from tests.support.filesystems import filesystem, make_image, run, unmount
from tests.support.operations import KIB, MIB, content
from tests.support.oracle import differences, names
from tests.support.pair import Pair

pytestmark = pytest.mark.native

PATIENCE = 60.0


@dataclass
class Ground:
    """A source, and a replica whose image the test may exchange."""

    source: Path
    mount: Path
    image: Path
    state: Path

    @property
    def replica(self) -> Path:
        return self.mount / "root"

    def unmount(self) -> None:
        unmount(self.mount)

    def mounted(self) -> None:
        run("mount", "-o", "loop", self.image, self.mount)


@pytest.fixture(params=["ext4", "xfs"])
def ground(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Ground]:
    with filesystem("ext4", scratch / "s") as source:
        (source / "root").mkdir()
        made = Ground(source / "root", scratch / "r", scratch / "image", scratch / "state")
        made.mount.mkdir()
        make_image(request.param, made.image, 400 * MIB)
        made.mounted()
        made.replica.mkdir()
        yield made
        unmount(made.mount)


def laid_out(source: Path) -> None:
    (source / "d").mkdir()
    for number in range(20):
        (source / f"d/file{number}").write_bytes(content(20 * KIB, number))
    (source / "still").write_bytes(content(8 * MIB))


def changed(source: Path) -> None:
    """Everything that can have happened since."""
    (source / "d/file0").unlink()
    (source / "d/file1").rename(source / "moved")
    with (source / "d/file2").open("r+b") as file:
        file.write(b"in place")
    (source / "d/file3").write_bytes(content(30 * KIB, 99))
    (source / "d/file4").chmod(0o600)
    (source / "new").mkdir()
    (source / "new/file").write_bytes(content(KIB))
    os.link(source / "d/file5", source / "new/link")


def watched(top: Path) -> set[bytes]:
    return set(names(top))


@pytest.mark.parametrize("alive", [True, False], ids=["the sender lives", "the sender is started again"])
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
def test_a_replica_set_back_to_an_older_snapshot(ground: Ground, alive: bool, killed: bool) -> None:
    """The receiver's state is newer than the tree; what was durable once is owed by nobody."""
    snapshot = ground.image.with_suffix(".old")
    laid_out(ground.source)
    with Pair(ground.source, ground.replica, ground.state) as pair:
        pair.assert_same()
        run("sync", "--file-system", ground.replica)
        run("fsfreeze", "--freeze", ground.mount)
        shutil.copyfile(ground.image, snapshot)
        run("fsfreeze", "--unfreeze", ground.mount)
        changed(ground.source)
        pair.assert_same()
        sent, resyncs = pair.spent()
        assert pair.receiver is not None
        assert pair.sender is not None
        if not alive:
            pair.sender.stop()
        (pair.receiver.kill if killed else pair.receiver.stop)()
        ground.unmount()
        snapshot.replace(ground.image)
        ground.mounted()
        assert (ground.replica / "d/file0").exists()
        pair.restart_receiver()
        assert "set back to an older state" in pair.receiver.text()
        if alive:
            eventually(lambda: pair.resyncs() > resyncs, PATIENCE, "the sender compares")
        else:
            pair.start_sender()
            sent = 0
        pair.assert_same(timeout=PATIENCE)
        assert pair.wire_bytes() - sent < 4 * MIB, "what did not change was sent again"


def test_the_receivers_state_is_lost(ground: Ground) -> None:
    laid_out(ground.source)
    with Pair(ground.source, ground.replica, ground.state) as pair:
        pair.assert_same()
        pair.kill_receiver()
        changed(ground.source)
        before = watched(ground.replica)
        shutil.rmtree(pair.receive_state)
        pair.start_receiver(ready=False)
        assert pair.receiver is not None
        assert pair.receiver.exit_code() == 3
        assert "--adopt" in pair.receiver.text()
        assert watched(ground.replica) == before
        pair.adopt = True
        pair.start_receiver()
        pair.assert_same(timeout=PATIENCE)
        assert pair.wire_bytes() < 12 * MIB, "what did not change was sent again"


def test_the_senders_state_is_lost(ground: Ground) -> None:
    """It is another source then: refused, and nothing happens to the replica, until the receiver starts over, too."""
    laid_out(ground.source)
    with Pair(ground.source, ground.replica, ground.state) as pair:
        pair.assert_same()
        assert pair.sender is not None
        pair.sender.stop()
        changed(ground.source)
        before = watched(ground.replica)
        shutil.rmtree(pair.send_state)
        pair.start_sender(ready=False)
        assert pair.sender.exit_code() == 3
        assert "another source" in pair.sender.text()
        assert watched(ground.replica) == before
        pair.kill_receiver()
        shutil.rmtree(pair.receive_state)
        pair.adopt = True
        pair.start_receiver()
        pair.start_sender()
        pair.assert_same(timeout=PATIENCE)
        assert pair.wire_bytes() < 4 * MIB


def test_the_receivers_state_is_older_than_the_replica(ground: Ground) -> None:
    laid_out(ground.source)
    old = ground.state.with_name("old")
    with Pair(ground.source, ground.replica, ground.state) as pair:
        pair.assert_same()
        assert pair.receiver is not None
        pair.receiver.stop()
        shutil.copytree(pair.receive_state, old)
        pair.restart_receiver()
        pair.until_connected()
        changed(ground.source)
        pair.assert_same()
        pair.kill_receiver()
        shutil.rmtree(pair.receive_state)
        shutil.move(old, pair.receive_state)
        pair.restart_receiver()
        with (ground.source / "d/file9").open("ab") as file:
            file.write(b"and goes on")
        pair.assert_same(timeout=PATIENCE)


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "while it is stopped"])
@pytest.mark.parametrize("instead", ["nothing", "another filesystem", "a full one"])
def test_the_replica_is_not_mounted(ground: Ground, scratch: Path, running: bool, instead: str) -> None:
    """What is there instead is not touched, and when it is back the replication goes on."""
    laid_out(ground.source)
    with Pair(ground.source, ground.replica, ground.state) as pair:
        pair.assert_same()
        assert pair.receiver is not None
        if not running:
            pair.receiver.stop()
        before = watched(ground.replica)
        run("umount", "--lazy", ground.mount)
        other = scratch / "other"
        if instead != "nothing":
            make_image("ext4", other, 64 * MIB)
            run("mount", "-o", "loop", other, ground.mount)
        ground.replica.mkdir()
        if instead == "a full one":
            (ground.replica / "theirs").write_bytes(b"somebody else's")
        there = watched(ground.replica)
        if not running:
            pair.start_receiver(ready=False)
        assert pair.receiver.exit_code() == 3
        assert "Traceback" not in pair.receiver.text()
        changed(ground.source)
        assert watched(ground.replica) == there
        if instead == "nothing":
            ground.replica.rmdir()
        else:
            unmount(ground.mount)
        ground.mounted()
        assert watched(ground.replica) == before
        pair.restart_receiver()
        pair.assert_same(timeout=PATIENCE)


def test_sync_is_not_promised_by_a_sender_that_spoke_to_nobody(ground: Ground) -> None:
    """While the replica is away nothing is durable, and `wait` says so."""
    laid_out(ground.source)
    with Pair(ground.source, ground.replica, ground.state) as pair:
        pair.assert_same()
        pair.kill_receiver()
        eventually(lambda: not pair.connected(), 20, "the sender notices")
        changed(ground.source)
        assert pair.try_wait(0.5)[0] == 1
        pair.restart_receiver()
        pair.assert_same(timeout=PATIENCE)
        assert differences(ground.source, ground.replica) == []


@pytest.mark.parametrize("how", ["full", "damaged"])
def test_a_receiver_that_cannot_use_its_state_says_what_to_do(ground: Ground, scratch: Path, how: str) -> None:
    (scratch / "state").mkdir()
    with filesystem("ext4", scratch / "t", 16 * MIB) as small:
        pair = Pair(ground.source, ground.replica, ground.state)
        pair.receive_state = small / "state"
        laid_out(ground.source)
        with pair:
            pair.assert_same()
            before = watched(ground.replica)
            pair.kill_receiver()
            if how == "full":
                for size in (64 * KIB, 1):
                    with contextlib.suppress(OSError), (small / f"ballast{size}").open("wb", buffering=0) as file:
                        while True:
                            file.write(bytes(size))
            else:
                for path in pair.receive_state.glob("inventory.sqlite-*"):
                    path.unlink()
                (pair.receive_state / "inventory.sqlite").write_bytes(content(8 * KIB))
            pair.start_receiver(ready=False)
            receiver = pair.receiver
            assert receiver is not None
            assert receiver.exit_code() == 3, receiver.text()
            assert "Traceback" not in receiver.text()
            assert str(pair.receive_state) in receiver.text()
            assert watched(ground.replica) == before
            if how == "full":
                for path in small.glob("ballast*"):
                    path.unlink()
            else:
                shutil.rmtree(pair.receive_state)
                pair.adopt = True
            pair.start_receiver()
            pair.assert_same(timeout=PATIENCE)

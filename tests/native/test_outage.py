"""Either end dies, the network goes; afterwards both sides are the same without help, and but for a dead sender without
a rescan."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import authority, issue
from tests.support.deadline import eventually
from tests.support.filesystems import filesystem
from tests.support.load import Churn
from tests.support.namespaces import Cable, cable
from tests.support.operations import MIB, content
from tests.support.pair import Pair, free_port
from tests.support.proxy import CountingProxy

pytestmark = pytest.mark.native

PATIENCE = 120.0


@pytest.fixture
def roots(scratch: Path) -> Iterator[tuple[Path, Path, Path]]:
    """A source and a replica on filesystems of their own, and a directory for state."""
    with filesystem("ext4", scratch / "s") as source, filesystem("xfs", scratch / "r") as replica:
        for top in (source, replica):
            (top / "root").mkdir()
        (scratch / "state").mkdir()
        yield source / "root", replica / "root", scratch / "state"


@pytest.fixture
def laid(request: pytest.FixtureRequest) -> Iterator[Cable]:
    with cable(f"{os.getpid() % 100_000:05d}") as made:
        yield made


def more_than(churn: Churn, turns: int) -> None:
    """Let the load go on for so many turns."""
    until = churn.turns + turns
    eventually(lambda: churn.turns >= until or churn.failure is not None, 60, "the load makes its turns")


def test_receiver_killed_under_load(roots: tuple[Path, Path, Path]) -> None:
    source, replica, state = roots
    (source / "still").write_bytes(content(8 * MIB))
    with Pair(source, replica, state) as pair:
        pair.assert_same()
        resyncs = pair.resyncs()
        with Churn(source / "load") as churn:
            for _ in range(4):
                more_than(churn, 300)
                pair.kill_receiver()
                more_than(churn, 300)
                pair.restart_receiver()
                pair.until_connected()
            more_than(churn, 100)
            churn.stop()
        pair.assert_same(timeout=PATIENCE)
        assert pair.resyncs() == resyncs
        assert pair.wire_bytes() < 200 * MIB


def test_sender_killed_under_load(roots: tuple[Path, Path, Path]) -> None:
    """Alone, then together with the receiver: the next one scans and compares, and sends again only what may differ."""
    source, replica, state = roots
    (source / "still").write_bytes(content(64 * MIB))
    with Pair(source, replica, state) as pair:
        pair.assert_same()
        with Churn(source / "load") as churn:
            for number in range(4):
                more_than(churn, 300)
                pair.kill_sender()
                if number % 2:
                    pair.kill_receiver()
                more_than(churn, 300)
                if number % 2:
                    pair.restart_receiver()
                pair.start_sender()
            more_than(churn, 100)
            churn.stop()
        pair.assert_same(timeout=PATIENCE)
        pair.kill_sender()
        pair.start_sender()
        pair.assert_same(timeout=PATIENCE)
        assert pair.wire_bytes() < 16 * MIB, "what did not change was sent again"


def test_only_what_changed_travels_after_an_outage(roots: tuple[Path, Path, Path]) -> None:
    source, replica, state = roots
    (source / "big").write_bytes(content(16 * MIB))
    (source / "old").write_bytes(content(4 * MIB, 2))
    with Pair(source, replica, state) as pair:
        pair.assert_same()
        before, resyncs = pair.wire_bytes(), pair.resyncs()
        pair.kill_receiver()
        with (source / "big").open("r+b") as file:
            for number in range(100):
                file.seek(5 * MIB + number)
                file.write(b"x")
                file.flush()
        (source / "old").rename(source / "new")
        (source / "gone").write_bytes(b"made and removed while nobody listened")
        (source / "gone").unlink()
        pair.restart_receiver()
        pair.assert_same(timeout=PATIENCE)
        assert pair.resyncs() == resyncs
        assert pair.wire_bytes() - before < 64 * 1024


def accepted(proxy: CountingProxy, connections: int) -> None:
    """Wait until the proxy has seen so many connections."""
    eventually(lambda: proxy.accepted >= connections, PATIENCE, f"connection {connections} comes")


def test_connections_cut_again_and_again(roots: tuple[Path, Path, Path]) -> None:
    source, replica, state = roots
    port = free_port()
    with CountingProxy("127.0.0.1", port) as proxy:
        pair = Pair(source, replica, state, connect=f"127.0.0.1:{proxy.port}")
        pair.port = port
        with pair:
            resyncs = pair.resyncs()
            with Churn(source / "load") as churn:
                (source / "big").write_bytes(content(64 * MIB))
                for round_ in range(6):
                    more_than(churn, 150)
                    proxy.cut()
                    more_than(churn, 50)
                    proxy.mend()
                    # "connected" alone may still mean the connection that was cut
                    accepted(proxy, round_ + 2)
                    pair.until_connected()
                churn.stop()
            pair.assert_same(timeout=PATIENCE)
            assert proxy.accepted >= 7
            assert pair.resyncs() == resyncs


def test_network_cut_and_restored_under_load(roots: tuple[Path, Path, Path], laid: Cable, scratch: Path) -> None:
    source, replica, state = roots
    ca = authority(scratch / "tls")
    tls = issue(scratch / "tls", "sender", ca), issue(scratch / "tls", "receiver", ca)
    with Pair(source, replica, state, tls=tls, host=laid.far_address, netns=(laid.near, laid.far)) as pair:
        resyncs = pair.resyncs()
        with Churn(source / "load") as churn:
            more_than(churn, 300)
            pair.until_connected()
            for _ in range(2):
                laid.cut()
                more_than(churn, 1500)
                laid.mend()
                pair.until_connected()
                more_than(churn, 200)
            churn.stop()
        pair.assert_same(timeout=PATIENCE)
        assert pair.resyncs() == resyncs


def test_a_long_cut_is_noticed_and_the_sender_returns_at_once(
    roots: tuple[Path, Path, Path], laid: Cable, scratch: Path
) -> None:
    """A peer that falls silent is given up; when the path is back, the sender does not sit out a back-off."""
    source, replica, state = roots
    ca = authority(scratch / "tls")
    tls = issue(scratch / "tls", "sender", ca), issue(scratch / "tls", "receiver", ca)
    with Pair(source, replica, state, tls=tls, host=laid.far_address, netns=(laid.near, laid.far)) as pair:
        pair.wait()
        laid.cut()
        (source / "file").write_bytes(content(MIB))
        eventually(lambda: not pair.connected(), 60, "the sender notices")
        laid.mend()
        pair.until_connected(10)
        pair.assert_same()

"""A path that comes back is noticed at once, one that goes away is not; with a real cable between namespaces."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest

from replicator.link import message as m
from replicator.link.address import Address, resolve
from replicator.link.connection import Connection, Party
from replicator.link.sockets import accept, connect, listen
from replicator.link.watch import PathWatch, open_watch
from replicator.model import FileId
from tests.support.deadline import eventually
from tests.support.namespaces import Cable, cable, call_inside

pytestmark = pytest.mark.native


@pytest.fixture
def wire() -> Iterator[Cable]:
    with cable(f"w{os.getpid() % 100_000}") as made:
        yield made


@pytest.fixture
def watch(wire: Cable) -> Iterator[PathWatch]:
    made = call_inside(wire.near, open_watch)
    assert made is not None
    yield made
    made.close()


def readable(watch: PathWatch) -> bool:
    return bool(select.select([watch], [], [], 0)[0])


def settle(watch: PathWatch) -> None:
    """Read until there has been nothing for a while: the addresses of IPv6 take a second or two."""
    while select.select([watch], [], [], 2.5)[0]:
        watch.changed()


def test_a_mended_cable_is_noticed_and_a_cut_one_is_not(wire: Cable, watch: PathWatch) -> None:
    settle(watch)
    assert not readable(watch)
    assert watch.changed() is False
    wire.cut()
    eventually(lambda: readable(watch))
    assert watch.changed() is False
    wire.mend()
    eventually(lambda: readable(watch) and watch.changed(), timeout=2)


def test_a_connection_over_a_cut_cable_knows_that_it_is_stalled(wire: Cable) -> None:
    listener = call_inside(wire.far, lambda: listen(Address(wire.far_address, 0)))
    endpoint = resolve(Address(wire.far_address, listener.getsockname()[1]))[0]
    sender = call_inside(wire.near, lambda: Connection(connect(endpoint), Party.SENDER))
    accepted = eventually(lambda: accept(listener))
    assert accepted is not None
    receiver = Connection(accepted, Party.RECEIVER)
    sender.say(m.Hello("source", FileId(0, 0, 2, 0), 1))
    eventually(receiver.hear)
    receiver.say(m.Welcome("replica", True))
    eventually(sender.hear)
    wire.cut()
    assert not sender.stalled()
    sender.say(m.Ping(1))
    eventually(sender.stalled, timeout=5)
    wire.mend()
    # The kernel gets there too, in its own time.
    eventually(lambda: receiver.hear() or (sender.hear() or not sender.stalled()), timeout=20)
    for end in (sender, receiver):
        end.close()
    listener.close()
    assert sender.stalled()


def test_a_flood_that_the_buffer_cannot_hold_counts_as_a_change(wire: Cable, watch: PathWatch) -> None:
    settle(watch)
    watch._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    for _ in range(40):
        wire.cut()
        wire.mend()
    wire.cut()
    assert watch.changed() is True
    assert watch.changed() is False


def test_no_netlink_is_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: object) -> socket.socket:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", refused)
    assert open_watch() is None

"""A path that comes back is noticed at once, one that goes away is not; with a real cable between namespaces."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest

from replicator.link.watch import PathWatch, open_watch
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


def test_a_flood_that_the_buffer_cannot_hold_counts_as_a_change(wire: Cable, watch: PathWatch) -> None:
    settle(watch)
    watch._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    for _ in range(40):
        wire.cut()
        wire.mend()
    wire.cut()
    assert watch.changed() is True
    assert watch.changed() is False


def test_what_the_parser_does_not_understand_counts_as_a_change(
    wire: Cable, watch: PathWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(watch)

    def broken(data: bytes) -> list[object]:
        raise ValueError(data)

    monkeypatch.setattr(watch._parser, "parse", broken)
    wire.cut()
    eventually(lambda: readable(watch) and watch.changed())


def test_no_netlink_is_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: object) -> socket.socket:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", refused)
    assert open_watch() is None

"""The cutting proxy against sockets of the test's own."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import get_args

import pytest

from tests.support.cutter import Cut, CuttingProxy, Direction, End
from tests.support.deadline import eventually

pytestmark = pytest.mark.native


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def proxy(server: socket.socket) -> Iterator[CuttingProxy]:
    with CuttingProxy("127.0.0.1", server.getsockname()[1]) as made:
        yield made


def through(proxy: CuttingProxy, server: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    server.settimeout(10)
    there, _ = server.accept()
    there.settimeout(10)
    return client, there


def all_of(connection: socket.socket) -> tuple[int, str]:
    """How many bytes come, and how it ends."""
    count = 0
    while True:
        try:
            data = connection.recv(1 << 20)
        except ConnectionResetError:
            return count, "rst"
        if not data:
            return count, "fin"
        count += len(data)


@pytest.mark.parametrize("after", [0, 1, 65_536, 200_001])
@pytest.mark.parametrize("how", get_args(End))
@pytest.mark.parametrize("direction", get_args(Direction))
def test_exactly_so_many_bytes_arrive(
    proxy: CuttingProxy, server: socket.socket, direction: Direction, how: End, after: int
) -> None:
    client, there = through(proxy, server)
    with client, there:
        client.sendall(b"before")
        assert there.recv(6, socket.MSG_WAITALL) == b"before"
        proxy.cut_after(Cut(direction, after, how))
        source, sink = (client, there) if direction == "out" else (there, client)
        source.sendall(bytes(300_000))
        assert all_of(sink) == (after, how)
        eventually(lambda: proxy.made == 1, 5, "the cut is made")


def test_the_next_connection_is_let_through_or_cut_in_its_turn(proxy: CuttingProxy, server: socket.socket) -> None:
    proxy.cut_after(Cut("out", 10), Cut("out", 20, "fin"))
    for expected in ((10, "rst"), (20, "fin"), (50, "fin")):
        client, there = through(proxy, server)
        with client, there:
            client.sendall(bytes(50))
            with contextlib.suppress(OSError):  # it may be cut off already
                client.shutdown(socket.SHUT_WR)
            assert all_of(there) == expected
    eventually(lambda: proxy.made == 2, 5, "both cuts are made")


def test_the_other_direction_is_not_counted(proxy: CuttingProxy, server: socket.socket) -> None:
    proxy.cut_after(Cut("back", 5))
    client, there = through(proxy, server)
    with client, there:
        client.sendall(bytes(1000))
        assert len(there.recv(1000, socket.MSG_WAITALL)) == 1000
        there.sendall(bytes(6))
        assert all_of(client) == (5, "rst")

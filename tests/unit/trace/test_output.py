"""Lines go where they are read, as fast as they are read, and nobody waits for that."""

from __future__ import annotations

import os
import pty
import select
import socket
import threading
import tty
from collections.abc import Callable
from pathlib import Path

import pytest

from replicator.errors import EnvironmentFault
from replicator.trace.output import Output

LINE = b"x" * 99 + b"\n"


def read_all(fd: int, into: bytearray) -> None:
    """What comes out of the other end until it is closed."""
    try:
        while data := os.read(fd, 1 << 16):
            into += data
    except OSError:  # how a terminal ends
        pass


def pipe() -> tuple[int, int]:
    return os.pipe()


def terminal() -> tuple[int, int]:
    reading, writing = pty.openpty()
    tty.setraw(writing)
    return reading, writing


def sockets() -> tuple[int, int]:
    one, other = socket.socketpair()
    return one.detach(), other.detach()


@pytest.mark.parametrize("ends", [pipe, terminal, sockets])
def test_nobody_reads_and_nobody_waits(ends: Callable[[], tuple[int, int]]) -> None:
    reading, writing = ends()
    output = Output(writing, limit=1 << 20)
    added = 0
    while not output.full:
        output.add(LINE * 1000)
        added += 1000
    assert output.behind
    assert os.get_blocking(writing)  # who shares the other descriptor finds it as it was
    got = bytearray()
    reader = threading.Thread(target=read_all, args=(reading, got))
    reader.start()
    assert output.finish(10) == 0
    assert not output.behind
    output.close()
    os.close(writing)
    reader.join(10)
    os.close(reading)
    assert bytes(got) == LINE * added


def test_what_is_left_when_nobody_reads_is_counted_in_lines() -> None:
    reading, writing = os.pipe()
    output = Output(writing)
    output.add(LINE * 50_000)
    left = output.finish(0.05)
    output.close()
    os.close(writing)
    got = bytearray()
    read_all(reading, got)
    os.close(reading)
    assert left > 0
    assert got.count(b"\n") + left == 50_000


def test_a_file_takes_everything_behind_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file:
        file.write(b"before\n")
        output = Output(file.fileno())
        output.add(LINE * 50_000)
        assert not output.behind
        output.close()
    assert path.read_bytes() == b"before\n" + LINE * 50_000


def test_a_full_disk_is_told_in_a_sentence() -> None:
    with Path("/dev/full").open("wb") as file:
        output = Output(file.fileno())
        with pytest.raises(EnvironmentFault, match="No space left on device; free space there"):
            output.add(LINE)
        output.close()


@pytest.mark.parametrize("before", [True, False], ids=["already", "meanwhile"])
def test_a_reader_that_is_gone_is_a_broken_pipe(before: bool) -> None:
    reading, writing = os.pipe()
    if before:
        os.close(reading)
    output = Output(writing)
    if not before:
        output.add(LINE)
        os.close(reading)
    with pytest.raises(BrokenPipeError):
        output.add(LINE)
    output.close()
    os.close(writing)


def test_it_can_be_polled_for_when_it_goes_on() -> None:
    reading, writing = os.pipe()
    output = Output(writing)
    output.add(LINE * 50_000)
    assert output.behind
    poller = select.poll()
    poller.register(output.fileno(), select.POLLOUT)
    assert not poller.poll(0)
    while not poller.poll(0):
        os.read(reading, 1 << 16)
    output.flush()
    output.close()
    os.close(reading)
    os.close(writing)

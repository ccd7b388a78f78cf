"""The control socket: requests, answers in several lines, and callers that misbehave."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from replicator.errors import EnvironmentFault, RsyncfsError
from replicator.observe.control import Caller, ControlServer, ask


@contextmanager
def serving(state: Path, handle: Any) -> Iterator[None]:
    selector = selectors.PollSelector()
    server = ControlServer(state, selector, handle)
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            for key, events in selector.select(0.02):
                server.ready(key, events)
            server.retune()
        server.close()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
        selector.close()


def echo(caller: Caller, request: dict[str, Any]) -> None:
    caller.answer({"line": 1}, done=False)
    caller.answer({"asked": request})


def test_an_answer_of_several_lines(tmp_path: Path) -> None:
    with serving(tmp_path, echo):
        assert list(ask(tmp_path, {"op": "x"}, 10)) == [{"line": 1}, {"asked": {"op": "x"}, "done": True}]


def test_a_long_state_directory_and_a_large_answer(tmp_path: Path) -> None:
    state = tmp_path / ("d" * 200)
    state.mkdir()
    with serving(state, lambda caller, request: caller.answer({"text": "x" * 3_000_000})):
        (answer,) = ask(state, {}, 10)
        assert len(answer["text"]) == 3_000_000


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="start it first"):
        list(ask(tmp_path, {}, 1))


def test_a_socket_left_by_a_dead_process_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control"))
    with pytest.raises(EnvironmentFault):
        list(ask(tmp_path, {}, 1))
    with serving(tmp_path, echo):
        assert len(list(ask(tmp_path, {}, 10))) == 2


def test_a_server_that_goes_before_it_answers(tmp_path: Path) -> None:
    with (
        serving(tmp_path, lambda caller, request: caller.close()),
        pytest.raises(RsyncfsError, match="ended before it answered"),
    ):
        list(ask(tmp_path, {}, 10))


def test_time_runs_out(tmp_path: Path) -> None:
    with serving(tmp_path, lambda caller, request: None), pytest.raises(TimeoutError):
        list(ask(tmp_path, {}, 0.05))


@pytest.mark.parametrize("said", [b"garbage\n", b"[1]\n", b"\xff\xfe\n", b"x" * 100_000])
def test_garbage_disturbs_nobody_else(tmp_path: Path, said: bytes) -> None:
    with serving(tmp_path, echo):
        with socket.socket(socket.AF_UNIX) as bad:
            bad.connect(str(tmp_path / "control"))
            bad.sendall(said)
            bad.shutdown(socket.SHUT_WR)
            bad.settimeout(10)
            try:
                answer = bad.recv(1000)
            except ConnectionResetError:
                answer = b""
        assert answer == b"" or b"error" in answer
        assert len(list(ask(tmp_path, {}, 10))) == 2

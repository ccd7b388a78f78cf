"""The socket in the state directory that `wait`, `status` and `verify` speak to.

One request a connection: a JSON object and a newline; one or more JSON lines come back, the last of which has the key
"done". Only root can reach it. The server side is driven by a selector loop and never blocks.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from replicator.errors import EnvironmentFault, RsyncfsError

NAME = "control"
MAX_REQUEST = 64 * 1024


class Caller:
    """One connected command. `answer` may be called later, from the loop."""

    def __init__(self, sock: socket.socket, hung_up: Callable[[Caller], None]) -> None:
        self._sock = sock
        self._hung_up = hung_up
        self._received = bytearray()
        self._unsent = bytearray()
        self._ending = False
        self.gone = False
        """It hung up, or everything is said."""

    def fileno(self) -> int:
        """For a selector."""
        return self._sock.fileno()

    def answer(self, body: dict[str, Any], *, done: bool = True) -> None:
        """Send a line; `done` if it is the last."""
        if self.gone:
            return
        self._unsent += orjson.dumps({**body, **({"done": True} if done else {})}) + b"\n"
        self._ending = self._ending or done
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes."""
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if self._ending:
            self.close()

    def read(self) -> dict[str, Any] | None:
        """The request, once it is complete."""
        try:
            data = self._sock.recv(MAX_REQUEST)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        self._received += data
        if not data or len(self._received) > MAX_REQUEST:
            self.close()
            return None
        line, newline, rest = self._received.partition(b"\n")
        if not newline:
            return None
        self._received = bytearray(rest)
        try:
            request = orjson.loads(line)
        except orjson.JSONDecodeError:
            request = None
        if not isinstance(request, dict):
            self.answer({"error": "not a JSON object"})
            return None
        return request

    def close(self) -> None:
        """Hang up."""
        if not self.gone:
            self.gone = True
            self._hung_up(self)
            self._sock.close()

    @property
    def interest(self) -> int:
        """The selectors.EVENT_* mask to wait for."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)


class ControlServer:
    """Listens in a state directory; requests go to `handle(caller, request)`."""

    def __init__(
        self,
        state: Path,
        selector: selectors.BaseSelector,
        handle: Callable[[Caller, dict[str, Any]], None],
    ) -> None:
        """The caller must hold the state directory's lock: a socket that is there is a dead process's."""
        self._path = state / NAME
        self._selector = selector
        self._handle = handle
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        with _short(self._path) as name:
            self._listener.bind(name)
        os.chmod(self._path, 0o600)
        self._listener.listen(16)
        self._callers: set[Caller] = set()
        selector.register(self._listener, selectors.EVENT_READ, self)

    def ready(self, key: selectors.SelectorKey, events: int) -> None:
        """The selector says that something registered here is ready."""
        if key.fileobj is self._listener:
            self._accept()
        elif isinstance(key.data, _Key):
            caller = key.data.caller
            if events & selectors.EVENT_WRITE:
                caller.flush()
            if events & selectors.EVENT_READ and not caller.gone:
                request = caller.read()
                if request is not None:
                    self._handle(caller, request)

    def retune(self) -> None:
        """Tell the selector what is waited for."""
        for caller in self._callers:
            self._selector.modify(caller.fileno(), caller.interest, _Key(self, caller))

    def close(self) -> None:
        """Hang up on everybody and remove the socket."""
        for caller in list(self._callers):
            caller.close()
        self._selector.unregister(self._listener)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        caller = Caller(sock, self._forget)
        self._callers.add(caller)
        self._selector.register(caller.fileno(), selectors.EVENT_READ, _Key(self, caller))

    def _forget(self, caller: Caller) -> None:
        self._callers.discard(caller)
        self._selector.unregister(caller.fileno())


class _Key:
    """What the selector keeps for a caller: whose it is, and which."""

    def __init__(self, server: ControlServer, caller: Caller) -> None:
        self.server = server
        self.caller = caller


class _short:
    """A name for a socket's path that fits sun_path, whatever its length: through the directory's descriptor."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> str:
        self._fd = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def ask(state: Path, request: dict[str, Any], timeout: float | None = None) -> Iterator[dict[str, Any]]:
    """Send a request to the process that runs on `state`; its lines as they come, the last with "done".

    EnvironmentFault if none runs there; TimeoutError when `timeout` seconds pass without a line.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        try:
            with _short(state / NAME) as name:
                sock.connect(name)
        except OSError as error:
            cause = "permission denied; run as root" if isinstance(error, PermissionError) else "start it first"
            raise EnvironmentFault(f"no rsyncfs runs with the state directory {state}: {cause}") from None
        sock.sendall(orjson.dumps(request) + b"\n")
        sock.settimeout(timeout)
        with sock.makefile("rb") as lines:
            for line in lines:
                body = orjson.loads(line)
                last = bool(body.get("done"))
                yield body
                if last:
                    return
    raise RsyncfsError(f"the rsyncfs with the state directory {state} ended before it answered; see its log")

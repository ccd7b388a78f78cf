"""The sender's side of the process that holds its descriptors (holder.py): starts it, asks it, ends it.

Takes a state directory, whose lock the caller has: there is one holder for each. The socket is bound here and handed
over, so that nobody has to wait for the process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from replicator.errors import EnvironmentFault
from replicator.keeper import holder

NAME: Final = "held"
"""Of the socket in the state directory."""
_PATIENCE: Final = 5.0  # s


class HolderStore:
    """A `Store`."""

    def __init__(self, state: Path) -> None:
        self._state = Path(os.path.realpath(state))
        self._path = self._state / NAME

    def take(self) -> dict[str, int]:
        """See `Store.take`."""
        try:
            with self._connected() as sock:
                sock.sendall(holder.GIVE)
                said, descriptors, _, _ = socket.recv_fds(sock, 4096, holder.MOST)
        except OSError:
            return {}
        return dict(zip(said.decode().splitlines(), descriptors, strict=False))

    def put(self, descriptors: Mapping[str, int]) -> None:
        """See `Store.put`."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as server:
            os.fchmod(server.fileno(), 0o600)  # for root alone, from the moment it is there
            with self._near() as path:
                server.bind(path)
            server.listen(4)
            words = [f"{name}={descriptor}" for name, descriptor in descriptors.items()]
            program = Path(holder.__file__)
            # -I and -S: neither variables, nor packages, nor the working directory have a say in what it runs
            done = subprocess.run(
                [sys.executable, "-I", "-S", str(program), str(self._path), str(server.fileno()), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
                start_new_session=True,
                pass_fds=[server.fileno(), *descriptors.values()],
                check=False,
            )
        if done.returncode:
            self._path.unlink(missing_ok=True)
            raise OSError(errno.ECHILD, f"the process that is to hold them ended with {done.returncode}")

    def drop(self) -> None:
        """See `Store.drop`."""
        process = 0
        try:
            with self._connected() as sock:
                process = _process_of(sock)
                sock.sendall(holder.END)
                while sock.recv(4096):
                    pass
        except (FileNotFoundError, ConnectionError):
            pass  # it has ended, or there was none
        except OSError as error:
            raise EnvironmentFault(
                f"the process {process or 'that'} that holds the hooks of {self._state} does not end "
                f"({error.strerror or error}): kill it, and try again"
            ) from error
        try:
            self._path.unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise EnvironmentFault(f"cannot remove {self._path}: {error.strerror}; remove it, and try again") from error

    @contextlib.contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(_PATIENCE)
            with self._near() as path:
                sock.connect(path)
            yield sock

    @contextlib.contextmanager
    def _near(self) -> Iterator[str]:
        """The socket's path by way of its directory's descriptor: a long one would not fit into an address."""
        descriptor = os.open(self._state, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{descriptor}/{NAME}"
        finally:
            os.close(descriptor)


def _process_of(sock: socket.socket) -> int:
    process, _, _ = struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(process)

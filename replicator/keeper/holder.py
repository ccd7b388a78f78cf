"""A process that holds descriptors while no sender runs: `python -I -S holder.py SOCKET LISTENING NAME=DESCRIPTOR...`.

Takes descriptors, and a bound socket with its path; gives the descriptors to root, by SCM_RIGHTS, whenever asked. Ends
when it is told, or when its socket is gone from the state directory, or that directory is. It is run as a file, by
itself, and imports only what it needs of the standard library, so that it is small.

Who connects sends one byte: GIVE is answered with the names and the descriptors, END with the end of the process.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys

GIVE, END = b"g", b"e"
MOST = 8
"""Descriptors at most."""
_LOOK = 1.0  # seconds between looks at whether the socket is still there
_PATIENCE = 5.0  # seconds for who has connected to say what it wants


def place(path: str) -> tuple[int, int] | None:
    """Which inode is there; None if nothing is, or it cannot be reached."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def hold(path: str, server: socket.socket, descriptors: dict[str, int]) -> None:
    """Until the end."""
    mine = place(path)
    while mine is not None and place(path) == mine:
        if not select.select([server], [], [], _LOOK)[0]:
            continue
        caller, _ = server.accept()
        with caller:
            try:
                if _serve(caller, descriptors):
                    os.unlink(path)
                    os._exit(0)  # which closes all at once, the caller's connection too
            except OSError:
                continue


def _serve(caller: socket.socket, descriptors: dict[str, int]) -> bool:
    """Answer one; true if it is the end."""
    caller.settimeout(_PATIENCE)
    _, user, _ = struct.unpack("=iII", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user != 0:
        return False
    asked = caller.recv(1)
    if asked == GIVE:
        socket.send_fds(caller, ["\n".join(descriptors).encode()], list(descriptors.values()))
    return asked == END


def main(path: str, listening: str, *given: str) -> None:
    """As the command line has it."""
    server = socket.socket(fileno=int(listening))
    if os.fork():
        os._exit(0)  # who has started it knows that it runs, and need not wait for its end
    server.listen(4)  # from now on the socket says that it is this process's
    hold(path, server, {name: int(number) for name, _, number in (words.partition("=") for words in given)})


if __name__ == "__main__":
    main(*sys.argv[1:])

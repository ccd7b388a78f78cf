"""The least that a live copy can cost in Python: ring → pread → socket → pwrite → acknowledgement, for one file.

No journal, no checks, no durability, no second file: the floor that lag.py compares with. The sender's half runs in the
process that `Bare.open` starts, the receiver's in another. Each record of the kernel becomes one
message (offset, length, bytes), answered by one byte.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
from pathlib import Path

from ends import PORT, Replicator

from replicator.capture.tracepoint import TracepointSensor
from replicator.tree.handles import SourceRoot

HEAD = struct.Struct("!QI")
NAME = "file"
"""The only file that is replicated."""


class Bare(Replicator):
    """A site's `file`, and nothing else, replicated by as little as can be."""

    name = "bare chain"
    settings = "none"

    def open(self) -> None:
        for tree in (self.site.source, self.site.replica):
            (tree / NAME).touch()
        for end, path in (("receiver", self.site.replica), ("sender", self.site.source)):
            words = (sys.executable, __file__, end, path / NAME)
            process = self.start(end, *words, stdout=subprocess.PIPE)
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise SystemExit(f"the bare {end} did not start: {(self.site.base / f'{end}.log').read_text()}")


def receive(path: Path) -> None:
    """Write what comes."""
    file = os.open(path, os.O_RDWR)
    with socket.create_server(("127.0.0.1", PORT)) as server:
        print("ready", flush=True)
        connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = b""
    while data := connection.recv(1 << 20):
        buffer += data
        while len(buffer) >= HEAD.size:
            offset, length = HEAD.unpack_from(buffer)
            if len(buffer) < HEAD.size + length:
                break
            os.pwrite(file, buffer[HEAD.size : HEAD.size + length], offset)
            buffer = buffer[HEAD.size + length :]
            connection.send(b"a")


def send(path: Path) -> None:
    """Send what the kernel tells of."""
    file = os.open(path, os.O_RDONLY)
    inode = os.fstat(file).st_ino
    with SourceRoot.open(path.parent) as source, socket.create_connection(("127.0.0.1", PORT)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sensor = TracepointSensor()
        sensor.attach(source)
        print("ready", flush=True)
        poll = select.poll()
        poll.register(sensor.fileno(), select.POLLIN)
        poll.register(connection.fileno(), select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == connection.fileno():
                    if not connection.recv(1 << 16):
                        return
                    continue
                records = sensor.drain(1 << 12)
                sensor.advance()
                for ino, offset, length in [] if records is None else records[["ino", "off", "len"]].tolist():
                    if ino == inode and length < 1 << 30:
                        data = os.pread(file, length, offset)
                        while len(data) < length:  # an append is told before the size is set
                            data = os.pread(file, length, offset)
                        connection.sendmsg([HEAD.pack(offset, len(data)), data])


if __name__ == "__main__":
    {"sender": send, "receiver": receive}[sys.argv[1]](Path(sys.argv[2]))

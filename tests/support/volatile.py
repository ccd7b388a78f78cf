"""A disk with a write cache that forgets: what was not flushed when the power goes is lost, or half of it is not.

Takes a file, the *platter*, which holds what is durable; serves a disk of that size by the NBD protocol on a socket of
its own. Writes reach the platter when a flush asks for it, or at once when they demand it (FUA). At `cut` some of the
writes that wait, chosen by a seed, reach it in any order, the last of them perhaps torn between two sectors; whatever
is asked afterwards is an error. One thread a connection.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

SECTOR = 512

Read = Callable[[int], bytes]

_FLAGS_NEWSTYLE, _NO_ZEROES = 1, 2
_MAGIC, _OPTION_MAGIC, _REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _INFO_REPLY, _UNSUPPORTED = 1, 3, 1 << 31 | 1
_CAN_FLUSH_AND_FUA = 1 | 1 << 2 | 1 << 3
_REQUEST, _RESPONSE = 0x25609513, 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH = range(4)
_FUA = 1


class VolatileDisk:
    """A context manager. `socket` is the path of its Unix socket."""

    def __init__(self, platter: Path, socket_path: Path, seed: int) -> None:
        self._platter = os.open(platter, os.O_RDWR | os.O_CLOEXEC)
        self.size = os.fstat(self._platter).st_size
        self._path = platter
        current = socket_path.with_suffix(".now")
        _copy(platter, current)
        self._current = os.open(current, os.O_RDWR | os.O_CLOEXEC)
        current.unlink()
        self._dice = Random(seed)
        self._waiting: list[tuple[int, bytes]] = []
        self._lock = threading.Lock()
        self._dead = False
        self.flushes = self.lost = self.kept = 0
        """Flushes served; at the cut, writes that were lost, and that had reached the platter unasked."""
        self.socket = socket_path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(socket_path))
        self._listener.listen(4)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """The power goes."""
        with self._lock:
            self._dead = True
            dice, part = self._dice, self._dice.choice((0.0, 0.3, 0.7))
            chosen = [write for write in self._waiting if dice.random() < part]
            self.kept, self.lost = len(chosen), len(self._waiting) - len(chosen)
            dice.shuffle(chosen)
            for number, (offset, data) in enumerate(chosen):
                if number == len(chosen) - 1:
                    data = data[: dice.randrange(len(data) // SECTOR + 1) * SECTOR]
                os.pwrite(self._platter, data, offset)
            self._waiting.clear()

    def copy(self, to: Path) -> None:
        """What would be there if the power went now and took all that was not flushed."""
        with self._lock:
            _copy(self._path, to)

    def close(self) -> None:
        """Hang up; the platter stays."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self.socket.unlink(missing_ok=True)
        with self._lock:
            self._dead = True
            os.close(self._platter)
            os.close(self._current)

    def __enter__(self) -> VolatileDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the disk

    def _read(self, offset: int, length: int) -> bytes:
        with self._lock:
            self._alive()
            return os.pread(self._current, length, offset)

    def _write(self, offset: int, data: bytes, *, now: bool) -> None:
        with self._lock:
            self._alive()
            os.pwrite(self._current, data, offset)
            if not now:
                self._waiting.append((offset, data))
                return
            left = []
            for other, waiting in self._waiting:
                if other < offset + len(data) and offset < other + len(waiting):
                    os.pwrite(self._platter, waiting, other)  # else it could come out after what is newer
                else:
                    left.append((other, waiting))
            self._waiting = left
            os.pwrite(self._platter, data, offset)

    def _flush(self) -> None:
        with self._lock:
            self._alive()
            for offset, data in self._waiting:
                os.pwrite(self._platter, data, offset)
            self._waiting.clear()
            self.flushes += 1

    def _alive(self) -> None:
        if self._dead:
            raise OSError(errno.EIO, "the power is off")

    # -- the protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                if self._greet(connection, stream.read):
                    while self._one(connection, stream.read):
                        pass
            except (struct.error, OSError):
                return  # the other side is gone

    def _greet(self, connection: socket.socket, read: Read) -> bool:
        connection.sendall(_MAGIC + _OPTION_MAGIC + struct.pack(">H", _FLAGS_NEWSTYLE | _NO_ZEROES))
        (flags,) = struct.unpack(">I", read(4))
        while True:
            magic, option, length = struct.unpack(">8sII", read(16))
            assert magic == _OPTION_MAGIC, magic
            read(length)
            if option == _EXPORT_NAME:
                zeroes = b"" if flags & _NO_ZEROES else bytes(124)
                connection.sendall(struct.pack(">QH", self.size, _CAN_FLUSH_AND_FUA) + zeroes)
                return True
            if option in (_INFO, _GO):
                told = struct.pack(">HQH", 0, self.size, _CAN_FLUSH_AND_FUA)
                connection.sendall(_reply(option, _INFO_REPLY, told) + _reply(option, _ACK))
                if option == _GO:
                    return True
                continue
            connection.sendall(_reply(option, _ACK if option == _ABORT else _UNSUPPORTED))
            if option == _ABORT:
                return False

    def _one(self, connection: socket.socket, read: Read) -> bool:
        magic, flags, command, cookie, offset, length = struct.unpack(">IHHQQI", read(28))
        assert magic == _REQUEST, magic
        data = read(length) if command == _WRITE else b""
        answer, error = b"", 0
        try:
            if command == _READ:
                answer = self._read(offset, length)
            elif command == _WRITE:
                self._write(offset, data, now=bool(flags & _FUA))
            elif command == _FLUSH:
                self._flush()
            elif command == _DISCONNECT:
                return False
            else:
                error = errno.EINVAL
        except OSError as failure:
            error = failure.errno or errno.EIO
        connection.sendall(struct.pack(">IIQ", _RESPONSE, error, cookie) + answer)
        return True


def _copy(image: Path, to: Path) -> None:
    subprocess.run(["cp", "--sparse=always", image, to], check=True)


def _reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", _REPLY_MAGIC, option, kind, len(data)) + data

"""A disk that fails where and when a test says so: a loop device on a file of a FUSE filesystem of the test's own.

Takes a directory; gives a block device of zeros to make a filesystem on. `fail` names byte ranges whose writes (and on
request reads) end with an error, `heal` ends that. It needs /dev/fuse and root, and no module. The server is a process
of its own: it must answer while everything that uses the disk waits. Run as a program, it is that server.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.deadline import eventually
from tests.support.filesystems import run, unmount

NAME = b"disk"
_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _STATFS = 1, 2, 3, 4, 14, 15, 16, 17
_RELEASE, _FSYNC, _FLUSH, _INIT, _OPENDIR, _DESTROY = 18, 20, 25, 26, 27, 38
_BIG = 1 << 17


@dataclass(frozen=True)
class SickDisk:
    """A running one."""

    device: Path
    _orders: Path

    def fail(self, start: int = 0, end: int = 2**62, error: int = errno.EIO, *, reads: bool = False) -> None:
        """From now on, what touches bytes [start, end) of the device ends with that error."""
        with self._orders.open("a") as orders:
            orders.write(f"{start} {end} {error} {int(reads)}\n")

    def heal(self) -> None:
        """Nothing fails any more."""
        self._orders.write_text("")


@contextlib.contextmanager
def sick_disk(directory: Path, size: int) -> Iterator[SickDisk]:
    """A healthy disk of `size` bytes, which `fail` makes sick."""
    directory.mkdir(parents=True)
    point, backing, orders = directory / "fuse", directory / "backing", directory / "orders"
    point.mkdir()
    orders.write_text("")
    with backing.open("wb") as file:
        file.truncate(size)
    server = subprocess.Popen([sys.executable, "-m", "tests.support.sickdisk", point, backing, orders])
    try:
        eventually(lambda: (point / os.fsdecode(NAME)).exists(), 20, "the disk's server is there")
        device = Path(run("losetup", "--find", "--show", point / os.fsdecode(NAME)).strip())
        try:
            yield SickDisk(device, orders)
        finally:
            orders.write_text("")
            run("losetup", "--detach", device)
    finally:
        unmount(point)
        server.wait(20)


class _Server:
    """One file in one directory, as the kernel asks for them."""

    def __init__(self, point: str, backing: str, orders: str) -> None:
        self._backing = os.open(backing, os.O_RDWR)
        self._orders = orders
        self._fuse = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._fuse},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"sickdisk", os.fsencode(point), b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), "cannot mount", point)

    def serve(self) -> None:
        while True:
            try:
                request = os.read(self._fuse, _BIG + 4096)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno == errno.ENOENT:  # interrupted before it was read
                    continue
                raise
            _, operation, unique, node, *_ = _IN.unpack_from(request)
            if operation == _FORGET:
                continue
            try:
                answer, fault = self._answer(operation, node, request[_IN.size :]), 0
            except OSError as error:
                answer, fault = b"", -(error.errno or errno.EIO)
            with contextlib.suppress(FileNotFoundError):  # nobody waits for it any more
                os.write(self._fuse, _OUT.pack(_OUT.size + len(answer), fault, unique) + answer)

    def _answer(self, operation: int, node: int, body: bytes) -> bytes:
        match operation:
            case 26:  # INIT
                major, minor, ahead, _ = struct.unpack_from("<IIII", body)
                big_writes = 1 << 5
                return struct.pack("<IIIIHHIIHHI28x", major, min(minor, 31), ahead, big_writes, 8, 8, _BIG, 1, 32, 0, 0)
            case 1:  # LOOKUP
                if body.rstrip(b"\0") != NAME:
                    raise OSError(errno.ENOENT, "no such name")
                return struct.pack("<QQQQII", 2, 0, 3600, 3600, 0, 0) + self._attributes(2)
            case 3 | 4:  # GETATTR, SETATTR
                return struct.pack("<QII", 3600, 0, 0) + self._attributes(node)
            case 14 | 27:  # OPEN, OPENDIR
                return struct.pack("<QII", 0, 0, 0)
            case 15:  # READ
                _, offset, size = struct.unpack_from("<QQI", body)
                self._judge(offset, size, reading=True)
                return os.pread(self._backing, size, offset)
            case 16:  # WRITE
                _, offset, size = struct.unpack_from("<QQI", body)
                self._judge(offset, size, reading=False)
                return struct.pack("<II", os.pwrite(self._backing, body[-size:], offset), 0)
            case 17:  # STATFS
                return struct.pack("<QQQQQIIII24x", 1 << 20, 1 << 20, 1 << 20, 10, 10, 4096, 255, 4096, 0)
            case 18 | 20 | 25 | 38 | 29:  # RELEASE, FSYNC, FLUSH, DESTROY, RELEASEDIR
                return b""
        raise OSError(errno.ENOSYS, "not needed")

    def _attributes(self, node: int) -> bytes:
        size = os.fstat(self._backing).st_size if node == 2 else 0
        mode = stat.S_IFREG | 0o600 if node == 2 else stat.S_IFDIR | 0o700
        return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _judge(self, offset: int, size: int, *, reading: bool) -> None:
        with open(self._orders) as orders:
            for line in orders:
                start, end, error, reads = map(int, line.split())
                if offset < end and offset + size > start and (reads or not reading):
                    raise OSError(error, os.strerror(error))


if __name__ == "__main__":
    _Server(*sys.argv[1:]).serve()

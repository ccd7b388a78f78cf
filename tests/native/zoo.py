"""A tree with every kind of inode that a filesystem can hold, and an oracle that walks it.

Takes a mounted filesystem; makes the same tree for the same seed. The oracle asks statx and file handles, name by name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from replicator import syscalls
from replicator.model import FileId
from replicator.scan.row import Rows
from replicator.tree.handles import SourceRoot

CROWD = 3000
"""Names in the large directory, before every second is removed."""

TIMES = (0, 1, -1, -(10**9) - 1, -(2**31) * 10**9, 2**31 * 10**9 + 7, 2**32 * 10**9 + 999_999_999, 15 * 10**18 // 2)
"""Nanoseconds since the epoch: before it, in 2038, in 2106, in 2207."""


class Known(NamedTuple):
    """What is known of an inode."""

    mode: int
    nlink: int
    size: int
    ctime: int
    mtime: int


def wrapped(time: int) -> int:
    """A time as a row has it."""
    return (time + 2**63) % 2**64 - 2**63


def table(batches: Iterable[Rows]) -> dict[FileId, Known]:
    """Rows by identity. AssertionError if one comes twice."""
    found: dict[FileId, Known] = {}
    for rows in batches:
        for ino, root, gen, mode, nlink, pad, size, ctime, mtime in rows.tolist():
            id = FileId(0, root, ino, gen)
            assert id not in found, f"{id} comes twice"
            assert pad == 0
            found[id] = Known(mode, nlink, size, ctime, mtime)
    return found


def walk(source: SourceRoot) -> dict[FileId, Known]:
    """The oracle: everything in the tree."""
    found = {source.id: _known(os.fstat(source.fd))}
    _walk(source, os.open(".", os.O_RDONLY, dir_fd=source.fd), found)
    return found


def _walk(source: SourceRoot, fd: int, found: dict[FileId, Known]) -> None:
    try:
        for name in os.listdir(fd):
            try:
                id, same_mount = source.id_at(fd, os.fsencode(name))
            except FileNotFoundError:
                continue  # an empty place in a snapshot
            assert same_mount
            found[id] = _known(os.stat(name, dir_fd=fd, follow_symlinks=False))
            if stat.S_ISDIR(found[id].mode):
                _walk(source, os.open(name, os.O_RDONLY, dir_fd=fd), found)
    finally:
        os.close(fd)


def _known(status: os.stat_result) -> Known:
    return Known(
        status.st_mode, status.st_nlink, status.st_size, wrapped(status.st_ctime_ns), wrapped(status.st_mtime_ns)
    )


def _pretender() -> bytes:
    """File content that looks like an item of btrfs's trees with an inode in it."""
    inode = struct.pack("<QQQQQIIII", 7, 7, 4096, 4096, 0, 1, 0, 0, 0o100644).ljust(160, b"\0")
    return b"".join(struct.pack("<QQQII", 7, 2**20 + number, 0, 1, 160) + inode for number in range(8))


@contextlib.contextmanager
def populated(top: Path, seed: int = 1) -> Iterator[list[Path]]:
    """Make the tree below `top`; gives the regular files in it. Within the body, files without names are open."""
    rng = random.Random(seed)
    directories = [top]
    for number in range(30):
        directory = rng.choice(directories) / f"directory {number}"
        directory.mkdir(mode=rng.choice((0o700, 0o755, 0o2775, 0o1777)))
        directories.append(directory)
    files = [_file(rng, rng.choice(directories) / f"file {number}") for number in range(200)]
    for number, target in enumerate(("x", "y" * 59, "y" * 60, "z" * 900)):
        (rng.choice(directories) / f"link {number}").symlink_to(target)
    for name in (".hidden", "..twice", "...", ".h", "-", " ", "\n"):
        (top / name).touch()
    os.mkfifo(top / "fifo")
    os.mknod(top / "character", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(top / "block", stat.S_IFBLK | 0o600, os.makedev(300, 70000))
    with socket.socket(socket.AF_UNIX) as unix, contextlib.chdir(top):
        unix.bind("socket")
    for number in range(40):
        os.link(rng.choice(files), rng.choice(directories) / f"another name {number}")
    (top / "pretender").write_bytes(_pretender())
    files.append(top / "pretender")
    crowd = top / "crowd"
    crowd.mkdir()
    for number in range(CROWD):
        (crowd / f"{number:05}").touch()
    for number in range(0, CROWD, 2):
        (crowd / f"{number:05}").unlink()
    _attributes(top, files)
    for path in files[::5]:
        os.utime(path, ns=(1, rng.choice(TIMES) + rng.randrange(2)))
    os.utime(directories[3], ns=(1, TIMES[3]))
    with contextlib.ExitStack() as opened:
        gone = opened.enter_context((top / "open, without a name").open("wb"))
        gone.write(b"x" * 10000)
        (top / "open, without a name").unlink()
        unnamed = os.open(top, os.O_TMPFILE | os.O_RDWR)
        opened.callback(os.close, unnamed)
        named = os.open(top, os.O_TMPFILE | os.O_RDWR)
        opened.callback(os.close, named)
        parent = os.open(top, os.O_RDONLY)
        opened.callback(os.close, parent)
        syscalls.link_fd(named, parent, b"named after it was made")
        yield files


def _file(rng: random.Random, path: Path) -> Path:
    """A file of some size, which may have holes or be written to several times."""
    with path.open("wb") as file:
        size = rng.choice((0, 1, 40, 60, 61, 100, 150, 2000, 4096, 5000, 70000))
        file.write(rng.randbytes(size))
        if rng.random() < 0.2:
            file.seek(rng.randrange(2**33))
            file.write(b"far away")
        if rng.random() < 0.1:
            file.truncate(rng.choice((0, 10, 2**32, 2**33 + 1)))
    return path


def _attributes(top: Path, files: list[Path]) -> None:
    """Extended attributes, small and large: where there are inodes for them, those are not the tree's."""
    for number, path in enumerate(files[:40]):
        try:
            os.setxattr(path, "user.small", b"v" * number)
            os.setxattr(path, "user.large", bytes([number]) * 3000)
            os.setxattr(path, "user.huge", bytes([number]) * 20000)
        except OSError as error:
            assert error.errno in (errno.ENOSPC, errno.EOPNOTSUPP, errno.ERANGE, errno.E2BIG), error


def change(top: Path, files: list[Path], seed: int = 2) -> None:
    """Change some of the tree, leave most as it is."""
    rng = random.Random(seed)
    for number, path in enumerate(rng.sample(files, 20)):
        if number % 4 == 0:
            with path.open("ab") as file:
                file.write(b"more")
        elif number % 4 == 1:
            path.chmod(0o640)
        elif number % 4 == 2:
            os.utime(path, ns=(1, rng.randrange(10**18)))
        else:
            os.truncate(path, 17)
    (top / "crowd" / "00001").rename(top / "crowd" / "renamed")
    (top / "crowd" / "00003").unlink()
    (top / "new directory").mkdir()
    (top / "new directory" / "new file").write_text("new")
    os.link(top / "new directory" / "new file", top / "new name")

"""The block device that a filesystem lies on, opened to be read.

Takes a SourceRoot; gives a descriptor. What it reads comes through the page cache of the device, which is where ext4
keeps and changes its own metadata: what the kernel has changed is seen, written back or not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from replicator.errors import EnvironmentFault
from replicator.tree.handles import SourceRoot


def open_device(source: SourceRoot) -> int:
    """A close-on-exec descriptor. EnvironmentFault if there is no node of that device, or it may not be read."""
    major, minor = source.kernel_dev >> 20, source.kernel_dev & 0xFFFFF
    refusal = "no node of it is to be found in /dev"
    for path in _nodes(source, major, minor):
        try:
            if not _is(os.stat(path), major, minor):
                continue
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                refusal = f"{os.fsdecode(path)}: {error.strerror}"
            continue
        if _is(os.fstat(fd), major, minor):
            return fd
        os.close(fd)
    raise EnvironmentFault(
        f"Cannot read the device {major}:{minor} that {source.path} lies on ({refusal}); run as root, and let the"
        " service read block devices (DeviceAllow=block-* r)."
    )


def _is(status: os.stat_result, major: int, minor: int) -> bool:
    return stat.S_ISBLK(status.st_mode) and status.st_rdev == os.makedev(major, minor)


def _nodes(source: SourceRoot, major: int, minor: int) -> Iterator[bytes]:
    """Paths that may be the device's."""
    try:
        told = Path(f"/sys/dev/block/{major}:{minor}/uevent").read_bytes()
    except OSError:
        told = b""
    for line in told.splitlines():
        if line.startswith(b"DEVNAME="):
            yield b"/dev/" + line.removeprefix(b"DEVNAME=")
    if source.mount.source.startswith(b"/"):
        yield source.mount.source
    yield b"/dev/block/%d:%d" % (major, minor)

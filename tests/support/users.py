"""User namespaces, and mounts that shift owners by them.

Takes directories; gives mounts. Needs root and Linux 5.12; all is gone at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.deadline import eventually
from tests.support.filesystems import unmount

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _MOUNT_ATTR_IDMAP = 1, 4, 0x100000

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@contextlib.contextmanager
def user_namespace(first: int, count: int = 65536) -> Iterator[int]:
    """A descriptor of one in which 0 and those after it are `first` and those after it outside."""
    with subprocess.Popen(["unshare", "--user", "sleep", "infinity"]) as process:
        try:
            place = Path(f"/proc/{process.pid}")
            ours = os.readlink("/proc/self/ns/user")
            eventually(lambda: os.readlink(place / "ns/user") != ours, 10, "a user namespace is made")
            for kind in ("uid", "gid"):
                (place / f"{kind}_map").write_text(f"0 {first} {count}\n")
            descriptor = os.open(place / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield descriptor
            finally:
                os.close(descriptor)
        finally:
            process.kill()


@contextlib.contextmanager
def shifted(directory: Path, point: Path, first: int) -> Iterator[Path]:
    """`directory` once more at `point`, where owner 0 is shown as `first`, and so on."""
    with user_namespace(first) as namespace:
        tree = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(directory), _OPEN_TREE_CLONE | os.O_CLOEXEC)
        try:
            attributes = struct.pack("=4Q", _MOUNT_ATTR_IDMAP, 0, 0, namespace)
            _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, len(attributes))
            _call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(point), _MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)
    try:
        yield point
    finally:
        unmount(point)

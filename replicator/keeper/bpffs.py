"""The place in bpffs for what is to outlive a process.

Gives a directory on /sys/fs/bpf, where a bpffs is mounted if there is none yet, as systemd does. Where that cannot be
(a container), `NotKept` says why; then hooks end with their process, as they would without this.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from replicator import syscalls
from replicator.tree.mount import mount_of

MOUNT: Final = Path("/sys/fs/bpf")
_SETS: Final = "rsyncfs"


class NotKept(Exception):
    """Why nothing can be kept here, as a part of a sentence."""


def mounted() -> bool:
    """Whether there is a bpffs."""
    try:
        mount = syscalls.statx(syscalls.AT_FDCWD, bytes(MOUNT), mask=syscalls.STATX_MNT_ID).mount_id
        return mount_of(mount).fstype == "bpf"
    except (OSError, KeyError):
        return False


def sets() -> Path:
    """The directory in which each state directory has one of its own; made if missing. NotKept."""
    try:
        if not mounted():
            with locked(MOUNT):  # two mounts would hide each other
                if not mounted():
                    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
                    syscalls.mount(b"bpf", bytes(MOUNT), b"bpf", flags, b"mode=0700")
    except OSError as error:
        raise NotKept(f"there is no bpffs on {MOUNT}, and none can be mounted ({error.strerror})") from error
    directory = MOUNT / _SETS
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise NotKept(f"{directory} cannot be made ({error.strerror})") from error
    return directory


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Be the only one in there."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

"""What must be on the disk: an epoch that is to be durable, and bytes whose file is about to take another one's name.

`SyncJob` takes the root's descriptor and gives success or an error; it is to be run where nobody waits for it. It
promises that data and names written before it began are on the disk; the times and the inventory's commit follow in the
mirror's own thread. `write_out` promises less, and sooner: that no power cut shows names changed from here on without
these bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from replicator import syscalls

ORDERED = frozenset({"ext4", "xfs"})
"""Where it is enough that bytes were written before: the journal that tells of a name makes the disk flush first."""
_FEW = 4
"""Files that are cheaper to sync one by one than the whole filesystem, where each sync is a commit."""
_WAIT = syscalls.SYNC_FILE_RANGE_WAIT_BEFORE | syscalls.SYNC_FILE_RANGE_WRITE | syscalls.SYNC_FILE_RANGE_WAIT_AFTER


def write_out(descriptors: Sequence[int], fstype: str) -> None:
    """Have the bytes of these open files, all on one filesystem, on the disk before any name that is changed later.

    A journal may be committed with a new name and without the bytes: the file would be empty after a power cut, and
    what had the name before, which was durable, be gone. OSError as the filesystem raises it.
    """
    for fd in descriptors:
        syscalls.sync_file_range(fd, 0, 0, syscalls.SYNC_FILE_RANGE_WRITE)
    if fstype not in ORDERED and len(descriptors) > _FEW:
        syscalls.syncfs(descriptors[0])
        return
    for fd in descriptors:
        if fstype in ORDERED:
            syscalls.sync_file_range(fd, 0, 0, _WAIT)
        else:
            os.fdatasync(fd)


class SyncJob:
    """Call it once, in any thread. `epoch` of `instance` is the last one that it makes durable."""

    def __init__(self, root_fd: int, instance: int, epoch: int) -> None:
        self.instance = instance
        self.epoch = epoch
        self.error: OSError | None = None
        self._fd = os.dup(root_fd)

    def __call__(self) -> None:
        """syncfs; a failure is kept in `error`, never raised."""
        try:
            syscalls.syncfs(self._fd)
        except OSError as error:
            self.error = error
        finally:
            os.close(self._fd)

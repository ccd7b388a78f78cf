"""What must be on the disk: an epoch that is to be durable, and bytes whose file is about to take another one's name.

`SyncJob` takes the root's descriptor, the intent log's, and the files that were written; gives success, or an error, or
those files whose bytes did not reach the disk. To be run where nobody waits for it. Without an error, all else that was
written before it began is on the disk, with its times set; the inventory's commit follows.
`write_out` promises less, and sooner: that no power cut shows names changed from here on without these bytes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from replicator import syscalls
from replicator.mirror.attributes import set_time
from replicator.mirror.ground import open_handle
from replicator.model import FileId

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

    def __init__(
        self,
        root_fd: int,
        intents_fd: int,
        instance: int,
        epoch: int,
        written: Sequence[tuple[FileId, bytes]],
        times: Sequence[tuple[FileId, bytes, int]],
    ) -> None:
        """`written`: files with the replica's own handles of them; `times`: with what their modification times (ns) are
        to be once that is on the disk."""
        self.instance = instance
        self.epoch = epoch
        self.error: OSError | None = None
        self.lost: dict[FileId, OSError] = {}
        """Files whose bytes the disk did not take; all others it has, unless there is an `error`."""
        self.failed = False
        """Whether the `error` is the disk's, which may have lost whatever was written and is not durable."""
        self.late: dict[FileId, OSError] = {}
        """Those whose times could not be set."""
        self._written = written
        self.times = times
        self._fd = os.dup(root_fd)
        self._intents = os.dup(intents_fd)

    def __call__(self) -> None:
        """The intents, so that after a power cut it is known that an epoch was open; then the tree. Never raises."""
        try:
            with contextlib.suppress(OSError):  # then the mark may be missed, but nothing else
                os.fdatasync(self._intents)
            try:
                syscalls.syncfs(self._fd)
            except OSError as error:
                self._find_lost(error)
            for id, handle, mtime_ns in self.times:
                if id not in self.lost:
                    self._set_time(id, handle, mtime_ns)
        except OSError as error:
            self.error, self.failed = error, True
        finally:
            os.close(self._fd)
            os.close(self._intents)

    def _find_lost(self, error: OSError) -> None:
        """Which files it was. An error that belongs to none of them is everybody's: it is raised again."""
        for id, handle in self._written:
            try:
                self._sync_one(handle)
            except OSError as fault:  # also one that was removed meanwhile: that is known by then
                self.lost[id] = fault
        if not self.lost:
            raise error
        syscalls.syncfs(self._fd)  # each failure is told once: another one now is not theirs

    def _sync_one(self, handle: bytes) -> None:
        fd = open_handle(self._fd, handle, os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _set_time(self, id: FileId, handle: bytes, mtime_ns: int) -> None:
        try:
            fd = open_handle(self._fd, handle, os.O_PATH)
            try:
                set_time(fd, mtime_ns)
            finally:
                os.close(fd)
        except OSError as error:
            self.late[id] = error

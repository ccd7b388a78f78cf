"""The part of making an epoch durable that can take long, to be run where nobody waits for it.

Takes the root's descriptor, the intent log's, and the files that were written; gives success, or an error, or the files
whose bytes did not reach the disk. Without an error, everything else that was written before it began is on the disk;
the times and the inventory's commit follow in the mirror's own thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from replicator import syscalls
from replicator.model import FileId


class SyncJob:
    """Call it once, in any thread. `epoch` of `instance` is the last one that it makes durable."""

    def __init__(
        self,
        root_fd: int,
        intents_fd: int,
        instance: int,
        epoch: int,
        written: Sequence[tuple[FileId, bytes]],
    ) -> None:
        """`written`: files with the replica's own handles of them."""
        self.instance = instance
        self.epoch = epoch
        self.error: OSError | None = None
        self.lost: dict[FileId, OSError] = {}
        """Files whose bytes the disk did not take; all others it has, unless there is an `error`."""
        self.failed = False
        """Whether the `error` is the disk's, which may have lost whatever was written and is not durable."""
        self._written = written
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
        kind = int.from_bytes(handle[:4], "little", signed=True)
        fd = syscalls.open_by_handle_at(self._fd, kind, handle[4:], os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

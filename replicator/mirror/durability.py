"""The part of making an epoch durable that can take long, to be run where nobody waits for it.

Takes the root's descriptor; gives success or an error. It promises that data and names written before it began are on
the disk; the times and the inventory's commit follow in the mirror's own thread.
"""

from __future__ import annotations

import os

from replicator import syscalls


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

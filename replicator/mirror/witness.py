"""Has the replica been set back to an older state, by a snapshot or a backup, while its inventory was not?

Takes the inventory and the root's descriptor. At each commit it notes the change times of some inodes that the commit
is about; on the disk a change time can only be that or later. Nothing is put into the replica for it. It notices any
state from before the last durable epoch, unless the host's clock was set back as well; that a clock was set back may be
taken for it, which costs a comparison.
"""

from __future__ import annotations

import os

import orjson

from replicator.mirror.ground import open_handle
from replicator.mirror.inventory import Inventory

_KEY = "witnesses"
_MOST = 4


def note(inventory: Inventory, root_fd: int) -> dict[str, str]:
    """What to commit with the frozen layer, taken before that is synced. Empty if there is nothing new to tell."""
    seen = {}
    for id in inventory.changed(_MOST):
        handle = inventory.handle(id)
        changed = _changed(root_fd, handle)
        if changed is not None:
            seen[handle.hex()] = changed
    return {_KEY: orjson.dumps(seen).decode()} if seen else {}


def reverted(inventory: Inventory, root_fd: int) -> bool:
    """Whether the disk has something older than what was durable."""
    noted: dict[str, int] = orjson.loads(inventory.meta(_KEY) or "{}")
    found = [(_changed(root_fd, bytes.fromhex(handle)), changed) for handle, changed in noted.items()]
    if noted and all(now is None for now, _ in found):
        return True
    return any(now is not None and now < changed for now, changed in found)


def _changed(root_fd: int, handle: bytes) -> int | None:
    try:
        fd = open_handle(root_fd, handle, os.O_PATH)
    except OSError:
        return None
    try:
        return os.fstat(fd).st_ctime_ns
    finally:
        os.close(fd)

"""The sizes that the replica has last been told: a file that has grown owes what lies between.

Takes what epochs tell; gives the size that a flush may go by. Bounded: of a file that was not told lately only the
index may know it, and what that knows is as old as what is durable. Pure.
"""

from __future__ import annotations

from collections import OrderedDict

from replicator.model import FileId
from replicator.source.flight import Flush
from replicator.tree.index import TreeIndex

MOST = 1 << 13
"""Files whose sizes are remembered."""


class Sizes:
    """Of one outbox."""

    def __init__(self, index: TreeIndex) -> None:
        self._index = index
        self._lately: OrderedDict[FileId, int] = OrderedDict()

    def get(self, id: FileId) -> int | None:
        """The one told lately."""
        return self._lately.get(id)

    def known(self, id: FileId) -> int | None:
        """The one told lately or, if none was, durably."""
        size = self._lately.get(id)
        return self._index.size(id) if size is None else size

    def tell(self, id: FileId, size: int) -> None:
        """An epoch tells this one."""
        self._lately[id] = size
        self._lately.move_to_end(id)
        if len(self._lately) > MOST:
            self._lately.popitem(last=False)

    def forget(self, id: FileId) -> None:
        """The replica may have another one."""
        self._lately.pop(id, None)

    def lost(self, flush: Flush) -> None:
        """The replica may never have been told the size of this flush, only that of the one before."""
        known = self._lately.pop(flush.owed.id, None)
        if known is not None and flush.known_size is not None:
            self._lately[flush.owed.id] = min(known, flush.known_size)

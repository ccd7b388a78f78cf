"""Mapped files that are not in the tree (yet).

What happens to an inode without a name in the tree is dropped: it is read whole when it gets one. That does not hold
for mappings: a page that was stored to stays writable, and silent, until it is written out. So this remembers whose
mappings were seen; more than it can remember makes it answer yes for everybody. Pure.
"""

from __future__ import annotations

from replicator.model import FileId

LIMIT = 1 << 16


class MappedOutsiders:
    """A bounded set of ids."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._ids: set[FileId] = set()
        self._overflowed = False
        self._forgotten = False

    def note(self, id: FileId) -> None:
        """It has, or had, a writable shared mapping."""
        if len(self._ids) < self._limit:
            self._ids.add(id)
        elif id not in self._ids:
            self._overflowed = True

    def forget(self) -> None:
        """Nothing is known of what was seen: everybody may be mapped, until `remember`."""
        self._forgotten = True

    def remember(self) -> None:
        """Whatever was stored before `forget` is written out: whoever is mapped has been noted since."""
        self._forgotten = False

    def take(self, id: FileId) -> bool:
        """Whether a new member may have pages that nobody would hear of; it is no outsider from here on."""
        known = id in self._ids
        self._ids.discard(id)
        return known or self._overflowed or self._forgotten

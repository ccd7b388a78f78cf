"""When an inode may be tried again: not while trying is in vain, not while it costs more than it brings, and once more
when it has been quiet for a while. Pure; times as the caller's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container

from replicator.model import FileId

RETRY_FIRST, RETRY_LAST = 200_000_000, 10_000_000_000  # ns


class Pace:
    """Exceptions from "read at once"."""

    def __init__(self) -> None:
        self._retry: dict[FileId, tuple[int, int]] = {}  # until, and the delay that led there
        self._resting: dict[FileId, int] = {}
        self._unsettled: OrderedDict[FileId, int] = OrderedDict()

    def may_try(self, id: FileId, now: int) -> bool:
        """Whether the inode is to be read, or its death to be told, now."""
        if id in self._retry and self._retry[id][0] > now:
            return False
        if id in self._resting:
            if self._resting[id] > now:
                return False
            del self._resting[id]
        return True

    def holds(self, id: FileId) -> bool:
        """Whether there is a time before which it is not to be tried; that may have passed."""
        return id in self._retry or id in self._resting

    def defer(self, id: FileId, now: int) -> None:
        """It failed: try again later, each time later."""
        delay = min(RETRY_LAST, 2 * self._retry[id][1]) if id in self._retry else RETRY_FIRST
        self._retry[id] = (now + delay, delay)

    def due(self, id: FileId) -> int:
        """When what failed may be tried again; 0 if it did not fail."""
        return self._retry[id][0] if id in self._retry else 0

    def succeeded(self, id: FileId) -> None:
        """It did not fail."""
        self._retry.pop(id, None)

    def rest(self, id: FileId, until: int) -> None:
        """Reading it was costly: not before `until` again."""
        self._resting[id] = until

    def unsettled(self, id: FileId, taken: int) -> None:
        """The last fact, of a flush begun at `taken`, could not vouch for the inode's ctime."""
        self._unsettled[id] = taken
        self._unsettled.move_to_end(id)

    @property
    def unsettled_count(self) -> int:
        """How many inodes `quiet()` has still to give; may be asked from any thread."""
        return len(self._unsettled)

    def quiet(self, before: int, most: int) -> list[FileId]:
        """Up to `most` unsettled inodes that have not been told since `before`; each is given once."""
        found: list[FileId] = []
        while self._unsettled and len(found) < most:
            id, taken = next(iter(self._unsettled.items()))
            if taken > before:
                break
            del self._unsettled[id]
            found.append(id)
        return found

    def forget(self, id: FileId) -> None:
        """It is no member any more."""
        self._retry.pop(id, None)
        self._resting.pop(id, None)
        self._unsettled.pop(id, None)

    def retry_all(self) -> None:
        """What failed may go well now: another connection."""
        self._retry.clear()

    def stuck(self) -> list[FileId]:
        """What failed the last time."""
        return list(self._retry)

    def next_due(self, after: int, *owed: Container[FileId]) -> int | None:
        """When, after `after`, the first of what is owed and held off may be tried.

        What could have been tried before waits for something else: for a connection, or for other reads to end.
        """
        times = [(id, at) for id, (at, _) in self._retry.items()]
        times += self._resting.items()
        return min((at for id, at in times if at > after and any(id in group for group in owed)), default=None)

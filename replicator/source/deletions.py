"""How much may be deleted: what `--max-delete` means.

Takes groups of names that are to be deleted (a name, or a directory with all that was in it) and the time; says of each
group whether it may go. So many within a minute may; a group that would make them more is held, and with it, until
nothing is held any more, every later one: who deletes too much by mistake does not stop at the first minute. What has
been allowed is not taken back. Pure; it knows nothing of what a name is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

BATCH = 60_000_000_000
"""Deletions within so many ns are one batch."""

_Group = TypeVar("_Group", bound=Hashable)


class Deletions(Generic[_Group]):
    """The deletions of one sender. Times in ns, of a clock that is never set."""

    def __init__(self, limit: int | None, batch: int = BATCH) -> None:
        """`limit`: names within `batch` ns; None for any number."""
        self.limit = limit
        self._batch = batch
        self._allowed: deque[tuple[int, int]] = deque()
        self._recent = 0
        self._held: dict[_Group, int] = {}

    @property
    def holding(self) -> int:
        """How many names are held."""
        return sum(self._held.values())

    def __contains__(self, group: object) -> bool:
        """Whether it is held."""
        return group in self._held

    def __iter__(self) -> Iterator[_Group]:
        """What is held, the oldest first."""
        return iter(self._held)

    def ask(self, group: _Group, names: int, now: int, *, hold: bool = False) -> bool:
        """Whether `group`, of `names` names, may be deleted; it is held if not. Nothing of none is lost.

        `hold`: it is not to be deleted in any case, while anything is held.
        """
        if not names:
            return True
        while self._allowed and self._allowed[0][0] <= now - self._batch:
            self._recent -= self._allowed.popleft()[1]
        if self.limit is not None and (hold or self._held or self._recent + names > self.limit):
            self._held[group] = names
            return False
        if self.limit is not None:
            self._allowed.append((now, names))
            self._recent += names
        return True

    def shrink(self, group: _Group, names: int) -> None:
        """Only so many names of a held group are to be deleted still; none: it is held no more."""
        if names:
            self._held[group] = names
        else:
            self._held.pop(group, None)

    def settle(self, now: int) -> bool:
        """Let everything go that is held, if that has become few enough for one batch. Whether it was."""
        if not self._held or self.holding > (self.limit or 0):
            return False
        self._allowed.append((now, self.holding))
        self._recent += self.holding
        self._held.clear()
        return True

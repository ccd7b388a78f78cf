"""Generations: what `wait` waits for.

Everything that is owed (a dirty inode, a slot to look at, a fact in flight) holds a token of the generation in which it
became owed, and gives it back when it is durable on the replica. A barrier closes the current generation and is over
when no token of it or an older one is held. A writer that never pauses only makes newer tokens. Pure.
"""

from __future__ import annotations


class Generations:
    """Counts the tokens held per generation."""

    __slots__ = ("_held", "current")

    def __init__(self) -> None:
        self.current = 1
        """The generation that new tokens belong to."""
        self._held: dict[int, int] = {}

    def hold(self, generation: int | None = None) -> int:
        """Take a token of `generation` (of the current one if None); returns the generation."""
        taken = self.current if generation is None else generation
        self._held[taken] = self._held.get(taken, 0) + 1
        return taken

    def release(self, generation: int) -> None:
        """Give a token back. KeyError if none of that generation is held: a book-keeping fault."""
        left = self._held[generation] - 1
        if left:
            self._held[generation] = left
        else:
            del self._held[generation]

    def merge(self, one: int, other: int) -> int:
        """Two tokens become one of the older generation, which is returned."""
        self.release(max(one, other))
        return min(one, other)

    def close(self) -> int:
        """End the current generation; returns its number, to be waited for."""
        closed = self.current
        self.current += 1
        return closed

    def settled(self, generation: int) -> bool:
        """Whether nothing of `generation` or an older one is owed any more."""
        return all(held > generation for held in self._held)

    @property
    def owed(self) -> int:
        """How many tokens are held in all."""
        return sum(self._held.values())

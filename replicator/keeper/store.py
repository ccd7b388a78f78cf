"""Where open descriptors are kept that are to outlive the process.

`Store` is what the two ways have in common: systemd's (systemd.py), and a small process of our own (holder.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Store(Protocol):
    """A place for descriptors, by name, of one state directory."""

    def take(self) -> dict[str, int]:
        """What an earlier process has put there: the caller's to close, and still there. Empty if nothing is."""

    def put(self, descriptors: Mapping[str, int]) -> None:
        """Keep these, which stay the caller's, too. Nothing may be there. OSError if that cannot be."""

    def drop(self) -> None:
        """Give up what is there. EnvironmentFault if it cannot be known that it was."""

"""The kernel side's epochs: a number that only grows, of which records carry the low half.

Pure. 0 stands for none.
"""

from __future__ import annotations

from typing import Final

LOW: Final = 0xFFFFFFFF
"""The part of an epoch that records carry."""


def full(low: int, present: int) -> int:
    """The epoch whose low half a record carries: the last one that is not after `present`; 0 for 0.

    A record that is older than 2^32 epochs passes for a newer one, which only makes it owed once more.
    """
    return present - ((present - low) & LOW) if low else 0

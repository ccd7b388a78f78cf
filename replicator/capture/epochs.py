"""The kernel side's epochs, as records carry them: the low half of a number that only grows.

Pure. 0 stands for none.
"""

from __future__ import annotations

from typing import Final

LOW: Final = 0xFFFFFFFF
"""The part of an epoch that records carry."""


def reached(epoch: int, other: int) -> bool:
    """Whether `epoch` is `other` or a later one; none is before all."""
    return epoch != 0 and (epoch - other) & LOW < 1 << 31

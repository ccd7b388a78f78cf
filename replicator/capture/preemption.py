"""Whether this kernel takes the processor away from a task inside the kernel, in the middle of a program too.

Reads how it was built and, where that is chosen while it runs, what it was told.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_MODEL: Final = Path("/sys/kernel/debug/sched/preempt")


def preemptible(version: str | None = None, model: Path = _MODEL) -> bool:
    """True for full, lazy and real-time preemption, and if it cannot be known; false for none and voluntary.

    `version`: as uname(2) tells it. `model`: such as "none (voluntary) full", of which the one in brackets is in force.
    """
    built = version or os.uname().version
    if "PREEMPT" not in built:
        return False
    if "PREEMPT_DYNAMIC" not in built:
        return True
    try:
        return not {"(none)", "(voluntary)"} & set(model.read_text().split())
    except OSError:
        return True

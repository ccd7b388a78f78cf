"""Whether this kernel takes the processor away from a task inside the kernel, in the middle of a program too.

Reads how it was built and, where that is chosen while it runs, what it was told; for tracepoints, the kernel's types.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from replicator.capture.btf import Types

_MODEL: Final = Path("/sys/kernel/debug/sched/preempt")
_GUARD: Final = "class_srcu_fast_notrace_t"
"""What the guard is called in include/linux/srcu.h."""


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


def tracepoints_preemptible(types: Types) -> bool:
    """Whether that can happen to programs at raw tracepoints, as it can to those of trampolines everywhere.

    Since 7.0 a tracepoint is guarded by SRCU; before, preemption was off while its programs ran.
    """
    return types.has_typedef(_GUARD)

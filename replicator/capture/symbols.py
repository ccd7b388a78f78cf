"""Where functions of the kernel lie, from /proc/kallsyms.

Takes a function's name; gives addresses of this boot, good for nothing else. Only functions of the kernel itself.
"""

from __future__ import annotations

import re
from pathlib import Path

from replicator.errors import EnvironmentFault

KALLSYMS = Path("/proc/kallsyms")

DIRECT_END = "iomap_dio_complete"
"""The function in which direct writes end."""


def code_of(function: str, kallsyms: Path = KALLSYMS) -> tuple[int, int]:
    """The address of a function's first byte and the number of bytes up to the next symbol's.

    EnvironmentFault if there is no such function, or if the kernel does not tell.
    """
    try:
        lines = kallsyms.read_bytes()
    except OSError as fault:
        raise EnvironmentFault(
            f"cannot read where the kernel's functions lie in {kallsyms}: {fault.strerror}; use a kernel built with "
            "CONFIG_KALLSYMS=y, and mount /proc"
        ) from fault
    found = re.search(rb"^([0-9a-f]+) [tT] " + re.escape(function.encode()) + rb"$", lines, re.MULTILINE)
    if found is None:
        raise EnvironmentFault(f"this kernel has no function {function}, where direct writes end: use another kernel")
    start = int(found[1], 16)
    if not start:
        raise EnvironmentFault(
            f"the kernel hides where its function {function} lies: set the sysctl kernel.kptr_restrict to 1 or 0"
        )
    # several names may have one address
    for line in lines[found.end() :].splitlines():
        if line and (address := int(line.split(b" ", 1)[0], 16)) > start:
            return start, address - start
    raise EnvironmentFault(f"{kallsyms} ends with {function}: nothing tells how long it is; use another kernel")

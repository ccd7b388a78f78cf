"""What is run in each machine: the tables with each sensor, and the tests of tests/kernel/guest once.

Emulated processors take an hour for every row on every filesystem with each sensor on three kernels. In turn, the
tables are run with each sensor on each kernel on one filesystem, so that every two of kernel, sensor and filesystem
meet; and those tests of the guest that want a machine, whatever its kernel, are run on the newest alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tests.kernel.machine import HELPERS, Kernel, Run
from tests.kernel.record import FILESYSTEMS

COMMON = {
    # An emulated processor takes about fifteen times as long for a test, but limits are generous.
    "RSYNCFS_TEST_SLOW": "8",
    "RSYNCFS_TEST_HELPERS": str(HELPERS),
}
TABLES = [f"tests/native/test_{name}.py" for name in ("write_paths", "tree_names", "attributes")]
SENSORS = {
    "vfs-fexit": {"RSYNCFS_TEST_SENSOR": "vfs", "RSYNCFS_VFS_MECHANISM": "fexit"},
    "vfs-kprobe": {"RSYNCFS_TEST_SENSOR": "vfs", "RSYNCFS_VFS_MECHANISM": "kprobe"},
    "tracepoint": {"RSYNCFS_TEST_SENSOR": "tracepoint"},
}
MATRIX = [Run(name, {**COMMON, **variables}, TABLES) for name, variables in SENSORS.items()]
GUEST = Run("guest", COMMON, ["tests/kernel/guest"])


NEWEST = ["tests/kernel/guest/test_clock.py", "tests/kernel/guest/test_sick_disks.py"]
"""What wants a clock that can be set, and device-mapper."""


def chosen(kernels: Sequence[Kernel], *, in_turn: bool = False) -> list[tuple[Kernel, Run]]:
    """What is run on which of the kernels, which are sorted by age, oldest first."""
    if not in_turn:
        return [(kernel, run) for kernel in kernels for run in (GUEST, *MATRIX)]
    runs: list[tuple[Kernel, Run]] = []
    for number, kernel in enumerate(kernels):
        left_out = [f"--ignore={path}" for path in NEWEST if kernel != kernels[-1]]
        runs.append((kernel, replace(GUEST, tests=[*GUEST.tests, *left_out])))
        for at, run in enumerate(MATRIX):
            runs.append((kernel, replace(run, filesystems=(FILESYSTEMS[(number + at) % len(FILESYSTEMS)],))))
    return runs

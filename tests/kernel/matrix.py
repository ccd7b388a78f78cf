"""What is run in each machine: the tables with each sensor, and the tests of tests/kernel/guest once.

Emulated processors take most of an hour for every row on every filesystem with each sensor on three kernels. Taken in
turn, the tables are run with each sensor on each kernel, and every two of kernel, sensor and filesystem still meet: the
sensor that is chosen by itself has all filesystems, but for the newest kernel; each of the others has one.
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


def chosen(kernels: Sequence[Kernel], *, in_turn: bool = False) -> list[tuple[Kernel, Run]]:
    """What is run on which of the kernels, which are sorted by age, oldest first."""
    runs: list[tuple[Kernel, Run]] = []
    for number, kernel in enumerate(kernels):
        runs.append((kernel, GUEST))
        for at, run in enumerate(MATRIX):
            whole = not in_turn or (at == 0 and kernel != kernels[-1])
            one = FILESYSTEMS[(number + at) % len(FILESYSTEMS)]
            runs.append((kernel, run if whole else replace(run, filesystems=(one,))))
    return runs

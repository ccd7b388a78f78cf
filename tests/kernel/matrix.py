"""What is run in each machine: the tables with each sensor, and the tests of tests/kernel/guest once."""

from __future__ import annotations

from tests.kernel.machine import HELPERS, Run

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

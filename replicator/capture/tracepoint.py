"""The `tracepoint` sensor: raw tracepoints of the filesystem and of the VFS.

Takes a filesystem (type and device); gives the records of every change of its inodes. Needs neither kprobes nor
trampolines. A hook that this kernel lacks is reported in `coverage()` and does not fail the rest.
"""

from __future__ import annotations

from replicator.capture.bpf_sensor import BpfSensor
from replicator.capture.btf import Btf
from replicator.capture.compile import kernel_types
from replicator.capture.sensor import Watched
from replicator.errors import EnvironmentFault

FAMILIES: dict[str, tuple[str, ...]] = {
    "ext4": ("inode", "net", "iomap", "direct", "ext4"),
    "xfs": ("inode", "net", "iomap", "direct", "xfs"),
    "btrfs": ("inode", "net", "iomap", "direct", "btrfs"),
    "tmpfs": ("inode", "tmpfs", "results", "requests", "faults"),
}
"""The families of hooks (files in ebpf/) that each type of filesystem needs."""

OLD_KERNELS: dict[str, tuple[str, ...]] = {"ext4": ("setattr",), "xfs": ("setattr",)}
"""Families that stand in where a change of ctime passes no tracepoint (before Linux 6.13)."""


def families_of(fstype: str) -> tuple[str, ...]:
    """The families for a filesystem type. EnvironmentFault for a type that this sensor does not know."""
    try:
        return FAMILIES[fstype]
    except KeyError:
        raise EnvironmentFault(
            f"a source on {fstype} cannot be traced by the tracepoint sensor: put it on {', '.join(sorted(FAMILIES))}"
        ) from None


def families(fstype: str, types: Btf) -> tuple[str, ...]:
    """`families_of`, and those that this kernel needs in place of what it lacks."""
    stand_ins = OLD_KERNELS.get(fstype, ()) if types.tracepoint("ctime_ns_xchg") is None else ()
    return families_of(fstype) + stand_ins


class TracepointSensor(BpfSensor):
    """A `Sensor` over raw tracepoints."""

    def attach(self, source: Watched) -> None:
        """Load and attach. EnvironmentFault says what is missing. Twice is a programming error."""
        families_of(source.fstype)
        types = kernel_types((source.fstype, "iomap"))
        self._load(source, families(source.fstype, types), types)
        program = self._attached()
        if not any(hook.family == source.fstype for hook in program.attached):
            reasons = sorted({item.reason for item in program.excluded})
            self.close()
            raise EnvironmentFault(
                f"none of the {source.fstype} tracepoints can be used: {'; '.join(reasons)}; use another kernel"
            )
        self._watch(source)

"""The `tracepoint` sensor: raw tracepoints of the filesystem and of the VFS.

Takes a filesystem (type and device); gives the records of every change of its inodes. Needs neither kprobes nor
trampolines. A hook that this kernel lacks is reported in `coverage()` and does not fail the rest.
"""

from __future__ import annotations

from replicator.capture.bpf_sensor import BpfSensor
from replicator.capture.btf import Types
from replicator.capture.sensor import Coverage, Watched
from replicator.errors import EnvironmentFault

FAMILIES: dict[str, tuple[str, ...]] = {
    "ext4": ("inode", "net", "iomap", "ext4"),
    "xfs": ("inode", "net", "iomap", "xfs", "exchange"),
    "btrfs": ("inode", "net", "iomap", "btrfs"),
    "tmpfs": ("inode", "tmpfs", "results", "requests", "faults"),
}
"""The families of hooks (files in ebpf/) that each type of filesystem needs."""

NEWER: dict[str, tuple[str, ...]] = {
    "ctime_ns_xchg": ("inode",),  # 6.13
    "iomap_dio_complete": ("iomap",),  # 6.5
    "xfs_exchrange_before": ("exchange",),  # 6.10, together with what it tells
}
"""Tracepoints that came late, and the families that are nothing without them."""

STAND_INS: dict[str, dict[str, tuple[str, ...]]] = {
    "ctime_ns_xchg": {"ext4": ("ext4_inode",), "xfs": ("xfs_inode",), "btrfs": ()},
    "iomap_dio_complete": {"ext4": ("freed",), "xfs": ("freed",), "btrfs": ("freed",)},
    "xfs_exchrange_before": {"xfs": ()},
}
"""What takes their place, by the tracepoint that is missing and the type of filesystem; where nothing can, no entry."""

MODIFY = "fanotify FAN_MODIFY"
"""The mechanism in `coverage()` that tells of attributes where no hook does: who listens to names must ask for it."""


def families_of(fstype: str) -> tuple[str, ...]:
    """The families for a filesystem type. EnvironmentFault for a type that this sensor does not know."""
    try:
        return FAMILIES[fstype]
    except KeyError:
        raise EnvironmentFault(
            f"a source on {fstype} cannot be traced by the tracepoint sensor: put it on {', '.join(sorted(FAMILIES))}"
        ) from None


def families_on(fstype: str, types: Types) -> tuple[str, ...]:
    """The families for a filesystem type on the kernel that `types` describes."""
    families = families_of(fstype)
    for tracepoint, instead in STAND_INS.items():
        if fstype in instead and types.tracepoint(tracepoint) is None:
            families = tuple(family for family in families if family not in NEWER[tracepoint]) + instead[fstype]
    return families


def attributes_by_modify(fstype: str, types: Types) -> list[Coverage]:
    """FAN_MODIFY, if no hook tells of the attributes that other fanotify events are silent about; else empty."""
    if types.tracepoint("ctime_ns_xchg") is not None or STAND_INS["ctime_ns_xchg"].get(fstype):
        return []
    return [Coverage("inode", MODIFY, covered=True)]


class TracepointSensor(BpfSensor):
    """A `Sensor` over raw tracepoints."""

    def _prepare(self, source: Watched, types: Types, *, attach: bool) -> None:
        families_of(source.fstype)
        self._besides = attributes_by_modify(source.fstype, types)
        self._load(source, families_on(source.fstype, types), types, attach=attach)
        program = self._attached()
        if not any(hook.family == source.fstype for hook in program.attached):
            reasons = sorted({item.reason for item in program.excluded})
            self.close()
            raise EnvironmentFault(
                f"none of the {source.fstype} tracepoints can be used: {'; '.join(reasons)}; use another kernel"
            )

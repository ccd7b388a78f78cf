"""The `vfs` sensor: functions of the VFS, and the filesystem's own implementations of its operations.

Takes a filesystem (type and device); gives the records of every change of its inodes and of the names on it, in one
order. Each function is hooked by a trampoline (fexit) or, where that is not to be had, by a pair of probes. What cannot
be hooked in either way is left to the sensor of tracepoints and to fanotify: see `plan`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from replicator.capture import bpf, tracepoint
from replicator.capture.bpf_sensor import TYPES, BpfSensor
from replicator.capture.btf import Types
from replicator.capture.layout import FunctionHook
from replicator.capture.probes import Probes, probes_refusal
from replicator.capture.sensor import Coverage, Watched
from replicator.capture.source import probes_supported
from replicator.errors import EnvironmentFault, UsageError

BYTES: Final = ("vfs_write", "vfs_copy", "vfs_size", "vfs_mapping")
NAMES: Final = ("vfs_names", "vfs_attributes")
NET: Final = "net"
_DIRECT: Final = ("vfs_direct",)
_DIRECT_TRACED: Final = ("iomap",)
_DIRECT_TRACEPOINT: Final = "iomap_dio_complete"

FAMILIES: Final = (*BYTES, *_DIRECT, *NAMES)
"""All families of functions (files in ebpf/)."""

WRITES_TOLD: Final = ("RSYNCFS_VFS_WRITE",)
"""Defined in the text if functions tell of every write whose caller waits for it, so that others need not."""

MECHANISM: Final = "RSYNCFS_VFS_MECHANISM"
"""An environment variable: "fexit" or "kprobe" takes only that one."""


@dataclass(frozen=True, slots=True)
class Mechanisms:
    """In which ways functions can be hooked here."""

    trampolines: str | None
    """Why not; None if they can."""
    probes: str | None

    @property
    def usable(self) -> bool:
        """Whether there is one."""
        return self.trampolines is None or self.probes is None


def mechanisms(types: Types) -> Mechanisms:
    """What this kernel offers, as far as `MECHANISM` allows it. UsageError if that says nonsense."""
    only = os.environ.get(MECHANISM, "")
    if only not in ("", "fexit", "kprobe"):
        raise UsageError(f"{MECHANISM}={only} is not known: use fexit or kprobe, or leave it out")
    left_out = f"left out by {MECHANISM}={only}"
    probes = probes_refusal() if probes_supported() else f"not for {os.uname().machine} yet"
    return Mechanisms(
        left_out if only == "kprobe" else bpf.trampoline_refusal(types), left_out if only == "fexit" else probes
    )


def direct_families(fstype: str, types: Types) -> tuple[str, ...]:
    """Those that see direct writes complete in the background; tracepoints tell of them since Linux 6.5."""
    if fstype == "tmpfs":
        return ()
    return _DIRECT if types.tracepoint(_DIRECT_TRACEPOINT) is None else _DIRECT_TRACED


def check(fstype: str) -> None:
    """EnvironmentFault for a type of filesystem that this sensor does not know."""
    if fstype not in TYPES:
        raise EnvironmentFault(
            f"a source on {fstype} cannot be traced by the vfs sensor: put it on {', '.join(sorted(TYPES))}"
        )


def families_of(fstype: str, types: Types) -> tuple[str, ...]:
    """The families for a filesystem type. EnvironmentFault for one that this sensor does not know."""
    check(fstype)
    net = () if fstype == "tmpfs" else (NET,)
    return (*direct_families(fstype, types), *BYTES, *NAMES, *net)


def with_tracepoints(families: tuple[str, ...], fstype: str, types: Types) -> tuple[str, ...]:
    """These families, and those of the tracepoint sensor that are not among them."""
    return (*families, *(one for one in tracepoint.families_on(fstype, types) if one not in families))


class VfsSensor(BpfSensor):
    """A `Sensor` over functions of the kernel."""

    def _prepare(self, source: Watched, types: Types, *, attach: bool) -> None:
        families = families_of(source.fstype, types)
        offered = mechanisms(types)
        if not offered.usable:
            raise EnvironmentFault(
                f"the vfs sensor needs BPF trampolines or kernel probes: {offered.trampolines}; {offered.probes}; use "
                "--sensor tracepoint, or auto"
            )
        self._hook(source, families, types, offered, attach, writes=True)
        if self._lacking((*BYTES, *_DIRECT)):
            # what a function does not tell, the filesystem's own tracepoints do
            writes = not self._lacking(("vfs_write",))
            self.close()
            self._hook(source, with_tracepoints(families, source.fstype, types), types, offered, attach, writes=writes)
        if not self._told_bytes(source.fstype):
            reasons = sorted({item.reason for item in self._attached().excluded})
            self.close()
            raise EnvironmentFault(
                f"writes to {source.fstype} cannot be seen: {'; '.join(reasons)}; use another kernel"
            )
        self.tells_names = not self._lacking((*NAMES, "vfs_size"))
        if not self.tells_names:
            self._besides = [Coverage("vfs_names", tracepoint.MODIFY, covered=True)]

    def _hook(
        self,
        source: Watched,
        families: tuple[str, ...],
        types: Types,
        offered: Mechanisms,
        attach: bool,
        *,
        writes: bool,
    ) -> None:
        """Load the families; `writes`: see `WRITES_TOLD`."""
        self._load(
            source,
            families,
            types,
            WRITES_TOLD if writes else (),
            trampolines=offered.trampolines is None,
            probes=Probes() if offered.probes is None else None,
            attach=attach,
        )

    def _lacking(self, families: tuple[str, ...]) -> list[str]:
        """Functions of these families that could not be hooked."""
        return [
            item.hook.function
            for item in self._attached().excluded
            if isinstance(item.hook, FunctionHook) and item.hook.family in families
        ]

    def _told_bytes(self, fstype: str) -> bool:
        return any(hook.family in ("vfs_write", fstype) for hook in self._attached().attached)

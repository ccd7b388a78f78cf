"""What this kernel offers for seeing writes: the facts behind `rsyncfs doctor`.

Takes nothing but the running system; gives plain values. Changes nothing: what is loaded to try is removed again. A
finding says what is so now, not what will be.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from replicator import syscalls
from replicator.capture import vfs
from replicator.capture.bpf import bpf_refusal
from replicator.capture.btf import Types
from replicator.capture.choice import Choice, choices, not_loaded
from replicator.capture.compile import kernel_types
from replicator.capture.select import select_sensor, sensor_name
from replicator.capture.sensor import Coverage
from replicator.capture.tracepoint import FAMILIES, MODIFY
from replicator.capture.vfs import Mechanisms
from replicator.errors import EnvironmentFault
from replicator.resources import load_bcc


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the sensors build on."""

    name: str
    """root, bpf, btf, bcc, fanotify, kprobes or trampolines."""
    available: bool
    required: bool
    """Whether a sensor needs it (fanotify: that of tracepoints)."""
    detail: str
    """Which it is, or why it is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Support:
    """How completely one type of filesystem can be followed."""

    fstype: str
    sensor: str | None
    """Which would be taken; None if none can be."""
    reason: str
    """Why it cannot be followed; empty if it can."""
    families: tuple[Choice, ...]
    coverage: tuple[Coverage, ...]
    """Every hook of that sensor, as the kernel took it."""
    limits: tuple[str, ...]
    """What no hook can show, one sentence each."""

    @property
    def usable(self) -> bool:
        """Whether it can be followed at all."""
        return self.sensor is not None


@dataclass(frozen=True, slots=True)
class Offer:
    """All findings, and what follows from them."""

    release: str
    findings: tuple[Finding, ...]
    filesystems: tuple[Support, ...]
    sensor: str | None
    """The sensor that `--sensor auto` takes; None if there is none."""
    reason: str
    """Why that one, or what is missing."""


def examine() -> Offer:
    """Look at everything, load every program and remove it again. Never raises for what is missing: it reports that."""
    types, btf = _btf()
    fanotify = _fanotify()
    offered = vfs.mechanisms(types) if types is not None and os.geteuid() == 0 else Mechanisms("not root", "not root")
    findings = (
        _finding("root", os.geteuid() == 0, True, "running as root", "run rsyncfs as root, for example with sudo"),
        _bpf(),
        btf,
        _bcc(),
        fanotify,
        Finding(
            "trampolines", offered.trampolines is None, False, offered.trampolines or "fexit programs can be attached"
        ),
        Finding("kprobes", offered.probes is None, False, offered.probes or "kernel probes can be attached"),
    )
    missing = [item.name for item in findings if item.required and not item.available]
    if offered.usable and missing == ["fanotify"]:
        missing = []
    if missing or types is None:
        return Offer(os.uname().release, findings, (), None, f"missing: {', '.join(missing)}")
    filesystems = tuple(support(fstype, offered, fanotify.available) for fstype in FAMILIES)
    if not any(item.usable for item in filesystems):
        return Offer(os.uname().release, findings, filesystems, None, "no type of filesystem can be followed here")
    if offered.usable:
        by = (
            "BPF trampolines"
            if offered.trampolines is None
            else f"kernel probes, for trampolines: {offered.trampolines}"
        )
        return Offer(os.uname().release, findings, filesystems, "vfs", by)
    reason = f"trampolines: {offered.trampolines}; kernel probes: {offered.probes}"
    return Offer(os.uname().release, findings, filesystems, "tracepoint", reason)


def support(fstype: str, offered: Mechanisms, fanotify: bool) -> Support:
    """What this kernel offers for a filesystem type of `FAMILIES`."""
    types = kernel_types((fstype, "iomap"))
    families = choices(fstype, types, offered, fanotify)
    if not_loaded(fstype, types):
        return Support(fstype, None, f"the module {fstype} is not loaded: mount one and ask again", families, (), ())
    try:
        sensor = select_sensor("auto", fstype)
        coverage = sensor.trial(fstype)
    except EnvironmentFault as fault:
        return Support(fstype, None, str(fault), families, (), ())
    return Support(fstype, sensor_name(sensor), "", families, tuple(coverage), limits(fstype, coverage))


def limits(fstype: str, coverage: Sequence[Coverage], *, dax: bool = False) -> tuple[str, ...]:
    """What remains invisible with this coverage, one sentence each. `dax`: mappings reach the medium itself."""
    if dax:
        return (
            "the source is mounted with DAX: stores through a mapping are invisible there, and files that are written"
            " through mmap are not followed; mount it with -o dax=never",
        )
    if fstype != "tmpfs":
        return ()
    found = [
        "stores through a shared mapping are invisible on tmpfs once a page is mapped: files that are written through "
        "mmap there are not followed"
    ]
    if any(item.mechanism == MODIFY for item in coverage):
        found.append(
            "this kernel does not tell how short a file on tmpfs was cut, nor of writes there that are no system call's"
            " own (io_uring, loop devices): use Linux 6.13 or newer, or another filesystem"
        )
    return tuple(found)


def _finding(name: str, available: bool, required: bool, good: str, bad: str) -> Finding:
    return Finding(name, available, required, good if available else bad)


def _optional(name: str, refusal: str | None) -> Finding:
    return Finding(name, refusal is None, False, refusal or "available")


def _bpf() -> Finding:
    refusal = bpf_refusal()
    return Finding("bpf", refusal is None, True, refusal or "ring buffer maps can be made")


def _btf() -> tuple[Types | None, Finding]:
    try:
        types = kernel_types(("ext4", "xfs", "btrfs", "iomap"))
    except EnvironmentFault as fault:
        return None, Finding("btf", False, True, str(fault))
    return types, Finding("btf", True, True, "the kernel describes its types")


def _bcc() -> Finding:
    try:
        version = load_bcc().__version__
    except EnvironmentFault as fault:
        return Finding("bcc", False, True, str(fault))
    return Finding("bcc", True, True, f"version {version}")


def _fanotify() -> Finding:
    try:
        os.close(syscalls.fanotify_init(_FAN_CLASS_NOTIF | _FAN_REPORT_DFID_NAME_TARGET))
    except OSError as fault:
        return Finding("fanotify", False, True, f"refused ({fault.strerror}): run as root on Linux 5.17 or newer")
    return Finding("fanotify", True, True, "reports names and handles")


_FAN_CLASS_NOTIF = 0
_FAN_REPORT_DFID_NAME_TARGET = 0x200 | 0x400 | 0x800 | 0x1000

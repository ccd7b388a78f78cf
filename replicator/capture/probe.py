"""What this kernel offers for seeing writes: the facts behind `rsyncfs doctor`.

Takes nothing but the running system; gives plain values. Changes nothing: what is loaded to try is removed again. A
finding says what is so now, not what will be.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from replicator import syscalls
from replicator.capture import layout
from replicator.capture.bpf import bpf_refusal, trampoline_refusal
from replicator.capture.btf import Btf
from replicator.capture.compile import kernel_types
from replicator.capture.sensor import Coverage
from replicator.capture.symbols import DIRECT_END, code_of
from replicator.capture.tracepoint import FAMILIES, MODIFY, attributes_by_modify, families_on
from replicator.errors import EnvironmentFault
from replicator.resources import ebpf_directory, load_bcc

_KPROBES = Path("/sys/bus/event_source/devices/kprobe/type")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the sensors build on."""

    name: str
    """root, bpf, btf, bcc, fanotify, kprobes or trampolines."""
    available: bool
    required: bool
    """Whether the `tracepoint` sensor needs it."""
    detail: str
    """Which it is, or why it is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Support:
    """How completely one type of filesystem can be followed."""

    fstype: str
    coverage: tuple[Coverage, ...]
    limits: tuple[str, ...]
    """What no hook can show, one sentence each."""

    @property
    def usable(self) -> bool:
        """Whether any of its hooks can be attached."""
        return any(item.covered and item.family == self.fstype for item in self.coverage)


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
    """Look at everything. Never raises for what is missing: that is what it reports."""
    types, btf = _btf()
    findings = (
        _finding("root", os.geteuid() == 0, True, "running as root", "run rsyncfs as root, for example with sudo"),
        _bpf(),
        btf,
        _bcc(),
        _fanotify(),
        _finding("kprobes", _KPROBES.exists(), False, "available", "this kernel has none"),
        _trampolines(types),
    )
    missing = [item.name for item in findings if item.required and not item.available]
    filesystems = tuple(support(fstype, types) for fstype in FAMILIES) if types is not None else ()
    if missing:
        sensor, reason = None, f"missing: {', '.join(missing)}"
    elif not any(item.usable for item in filesystems):
        sensor, reason = None, "this kernel has none of the tracepoints of ext4, XFS, btrfs or tmpfs"
    else:
        sensor, reason = "tracepoint", "raw tracepoints serve; the vfs sensor is not part of this version"
    return Offer(os.uname().release, findings, filesystems, sensor, reason)


def support(fstype: str, types: Btf) -> Support:
    """What the kernel that `types` describes offers for a filesystem type of `FAMILIES`."""
    coverage = attributes_by_modify(fstype, types)
    for family in families_on(fstype, types):
        source = (ebpf_directory() / f"{family}.c").read_text()
        lacking = layout.missing(source, types)
        for hook in layout.hooks(source):
            reason = hook.objection(types) or (f"this kernel's types lack {', '.join(lacking)}" if lacking else "")
            if family == "freed" and not reason:
                reason = _hidden(DIRECT_END)
            coverage.append(Coverage(family, f"raw tracepoint {hook.tracepoint}", not reason, reason))
    return Support(fstype, tuple(coverage), limits(fstype, coverage))


def _hidden(function: str) -> str:
    try:
        code_of(function)
    except EnvironmentFault as fault:
        return str(fault)
    return ""


def limits(fstype: str, coverage: Sequence[Coverage]) -> tuple[str, ...]:
    """What remains invisible with this coverage, one sentence each."""
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


def _bpf() -> Finding:
    refusal = bpf_refusal()
    return Finding("bpf", refusal is None, True, refusal or "ring buffer maps can be made")


def _btf() -> tuple[Btf | None, Finding]:
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


def _trampolines(types: Btf | None) -> Finding:
    if types is None:
        reason: str | None = "there are no types to attach by"
    elif os.geteuid() != 0:
        reason = "not root"
    else:
        reason = trampoline_refusal(types)
    return Finding("trampolines", reason is None, False, reason or "available")

"""Which mechanism sees which way to change a file, and why that one: the table of `rsyncfs doctor`.

Takes the kernel's types and what may be used here; gives, for one type of filesystem, a choice for each family of
hooks. Loads nothing: whether the kernel takes a program is known when a sensor is tried (BpfSensor.trial).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from replicator.capture import tracepoint, vfs
from replicator.capture.btf import Types
from replicator.capture.layout import FunctionHook
from replicator.capture.source import judge
from replicator.capture.vfs import Mechanisms
from replicator.resources import ebpf_directory

FEXIT, KPROBE, TRACEPOINT, FANOTIFY = "fexit", "kprobe", "tracepoint", "fanotify"
MECHANISMS: Final = (FEXIT, KPROBE, TRACEPOINT, FANOTIFY)
"""Best first."""

FAMILIES: Final = {
    "write": "vfs_write",
    "direct": "vfs_direct",
    "copy": "vfs_copy",
    "size": "vfs_size",
    "mapping": "vfs_mapping",
    "names": "vfs_names",
    "attributes": "vfs_attributes",
}
"""What can happen to a file, and the family of functions (a file in ebpf/) that sees it."""
_INODES: Final = {
    "ext4": ("ext4_inode_info", "vfs_inode"),
    "xfs": ("xfs_inode", "i_vnode"),
    "btrfs": ("btrfs_inode", "vfs_inode"),
}
"""A member that every kernel has where the filesystem is."""
_NAMED: Final = ("names", "attributes")


@dataclass(frozen=True, slots=True)
class Option:
    """One mechanism for one family."""

    mechanism: str
    available: bool
    reason: str
    """Why it is not, or what is missing from it; empty if nothing is."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is taken for one family."""

    family: str
    options: tuple[Option, ...]
    chosen: str | None
    reason: str


def choices(fstype: str, types: Types, offered: Mechanisms, fanotify: bool) -> tuple[Choice, ...]:
    """For each family. `fanotify`: whether that is to be had."""
    families = [name for name in FAMILIES if not (name == "direct" and fstype == "tmpfs")]
    return tuple(_choose(name, fstype, types, offered, fanotify) for name in families)


def _choose(family: str, fstype: str, types: Types, offered: Mechanisms, fanotify: bool) -> Choice:
    options: list[Option] = []
    lacking = "" if family == "direct" and not _needs_functions(types) else _lacking(FAMILIES[family], fstype, types)
    if family == "direct" and not _needs_functions(types):
        options.append(Option(TRACEPOINT, True, ""))
    else:
        for mechanism, refusal in ((FEXIT, offered.trampolines), (KPROBE, offered.probes)):
            options.append(Option(mechanism, refusal is None and not lacking, refusal or lacking))
        if family in _NAMED:
            options.append(Option(FANOTIFY, fanotify, "" if fanotify else "the kernel refuses it"))
        else:
            missing = _lacking_tracepoints(fstype, types)
            options.append(Option(TRACEPOINT, not missing, missing))
    chosen = next((option for option in options if option.available), None)
    if chosen is None:
        return Choice(family, tuple(options), None, "; ".join(f"{one.mechanism}: {one.reason}" for one in options))
    passed = options[: options.index(chosen)]
    reason = "; ".join(f"{one.mechanism}: {one.reason}" for one in passed) or "the first choice"
    return Choice(family, tuple(options), chosen.mechanism, reason)


def _needs_functions(types: Types) -> bool:
    """Whether no tracepoint tells of direct writes that complete in the background."""
    return vfs.direct_families("ext4", types) == ("vfs_direct",)


def _lacking(family: str, fstype: str, types: Types) -> str:
    """What of a family of functions this kernel does not have, in words; empty if nothing."""
    text = (ebpf_directory() / f"{family}.c").read_text()
    objections = {hook.function: why for hook, why in _functions(text, fstype, types) if why is not None}
    if not objections:
        return ""
    if not_loaded(fstype, types):
        return f"the module {fstype} is not loaded"
    return "; ".join(f"{function}: {why}" for function, why in objections.items())


def _functions(text: str, fstype: str, types: Types) -> Iterable[tuple[FunctionHook, str | None]]:
    return ((hook, why) for hook, why in judge(text, fstype, types).items() if isinstance(hook, FunctionHook))


def _lacking_tracepoints(fstype: str, types: Types) -> str:
    usable = False
    for family in tracepoint.families_on(fstype, types):
        if family == fstype:
            text = (ebpf_directory() / f"{family}.c").read_text()
            usable = any(why is None for why in judge(text, fstype, types).values())
    if usable:
        return ""
    return f"the module {fstype} is not loaded" if not_loaded(fstype, types) else "this kernel has none that serve"


def not_loaded(fstype: str, types: Types) -> bool:
    """Whether the filesystem is a module that nobody has loaded, so that nothing is known of it."""
    return fstype in _INODES and types.member(*_INODES[fstype]) is None

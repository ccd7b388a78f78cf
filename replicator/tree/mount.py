"""Mounts, as /proc/self/mountinfo tells of them.

Takes a mount id; gives one line of that table. It holds for the moment it was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo: what is mounted, as the kernel names it."""

    id: int
    kernel_dev: int
    """The superblock's device (s_dev), major << 20 | minor; on btrfs it is not what `stat` says."""
    fstype: str
    source: bytes
    """The device, for filesystems that have one."""
    read_only: bool
    """The filesystem itself, not only this mount."""
    dax: bool
    """Files are, or may be, mapped without the page cache."""


def mount_of(mount_id: int) -> Mount:
    """Look a mount up in /proc/self/mountinfo. KeyError if it is not in this process's namespace."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields, _, rest = line.partition(b" - ")
        number, _, device = fields.split(b" ", 3)[:3]
        if int(number) != mount_id:
            continue
        fstype, source, options = rest.split(b" ")[:3]
        major, minor = device.split(b":")
        plain = (
            source.replace(rb"\040", b" ").replace(rb"\011", b"\t").replace(rb"\012", b"\n").replace(rb"\134", b"\\")
        )
        said = options.split(b",")
        dax = any(option in said for option in (b"dax", b"dax=always", b"dax=inode"))
        return Mount(mount_id, int(major) << 20 | int(minor), fstype.decode(), plain, b"ro" in said, dax)
    raise KeyError(mount_id)

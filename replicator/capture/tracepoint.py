"""The `tracepoint` sensor: raw tracepoints of the filesystem and of the VFS.

Takes a filesystem (type and device); gives the records of every change of its inodes. Needs neither kprobes nor
trampolines. A hook that this kernel lacks is reported in `coverage()` and does not fail the rest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from replicator.capture.bpf import lookup, recursion_member, recursion_misses
from replicator.capture.btf import Btf
from replicator.capture.commands import SIZE, Command
from replicator.capture.compile import Program, kernel_types
from replicator.capture.event import Events
from replicator.capture.headers import CACHE
from replicator.capture.ring import Ring
from replicator.capture.sensor import Coverage, Watched
from replicator.errors import EnvironmentFault
from replicator.model import FileId

FAMILIES: dict[str, tuple[str, ...]] = {
    "ext4": ("inode", "net", "iomap", "direct", "ext4"),
    "xfs": ("inode", "net", "iomap", "direct", "xfs"),
    "btrfs": ("inode", "net", "iomap", "direct", "btrfs"),
    "tmpfs": ("inode", "tmpfs", "results", "requests", "faults"),
}
"""The families of hooks (files in ebpf/) that each type of filesystem needs."""

OLD_KERNELS: dict[str, tuple[str, ...]] = {"ext4": ("setattr",), "xfs": ("setattr",)}
"""Families that stand in where a change of ctime passes no tracepoint (before Linux 6.13)."""

# Two programs share this tracepoint (ebpf/direct.c), so that one that the kernel skips loses nothing.
_TWICE = "iomap_dio_complete"

# enum rsyncfs_type of ebpf/maps.h
_TYPES = {"ext4": 1, "xfs": 2, "btrfs": 3, "tmpfs": 4}
_RING_FULL, _LOST_MAP_FULL = 0, 1

RING_BYTES = 16 * 1024 * 1024
LOST_INODES = 16384


def families_of(fstype: str) -> tuple[str, ...]:
    """The families for a filesystem type. EnvironmentFault for a type that this sensor does not know."""
    try:
        return FAMILIES[fstype]
    except KeyError:
        raise EnvironmentFault(
            f"a source on {fstype} cannot be traced by the tracepoint sensor: put it on {', '.join(sorted(FAMILIES))}"
        ) from None


def _families(fstype: str, types: Btf) -> tuple[str, ...]:
    families = families_of(fstype)
    if types.tracepoint("ctime_ns_xchg") is None:
        families += OLD_KERNELS.get(fstype, ())
    return families


class TracepointSensor:
    """A `Sensor` over raw tracepoints.

    `ring_bytes` is the ring's size (a power of two, at least a page), `lost_inodes` how many inodes can be remembered
    by name when it overflows; `tracing`: for `trace`, see `select_sensor`.
    """

    def __init__(
        self,
        ring_bytes: int = RING_BYTES,
        lost_inodes: int = LOST_INODES,
        index: int = 0,
        cache: Path = CACHE,
        *,
        tracing: bool = False,
    ) -> None:
        if ring_bytes < os.sysconf("SC_PAGE_SIZE") or ring_bytes & (ring_bytes - 1):
            raise ValueError("the ring's size must be a power of two and at least a page")
        self._ring_bytes = ring_bytes
        self._lost_inodes = lost_inodes
        self._index = index
        self._cache = cache
        self._tracing = tracing
        self._program: Program | None = None
        self._misses_at: int | None = None
        self._ring: Ring | None = None

    def attach(self, source: Watched) -> None:
        """Load and attach. EnvironmentFault says what is missing. Twice is a programming error."""
        assert self._program is None, "attached already"
        families_of(source.fstype)
        types = kernel_types((source.fstype, "iomap"))
        self._misses_at = recursion_member(types)
        defines = {
            "RSYNCFS_RING_PAGES": self._ring_bytes // os.sysconf("SC_PAGE_SIZE"),
            "RSYNCFS_LOST_INODES": self._lost_inodes,
        }
        if self._tracing:
            defines["RSYNCFS_TRACE"] = 1
        self._program = Program(_families(source.fstype, types), defines, types, self._cache)
        try:
            if not any(hook.family == source.fstype for hook in self._program.attached):
                reasons = sorted({item.reason for item in self._program.excluded})
                raise EnvironmentFault(
                    f"none of the {source.fstype} tracepoints can be used: {'; '.join(reasons)}; use another kernel"
                )
            self._ring = Ring(self._program.map_descriptor("events"), self._ring_bytes)
            self._watch(source)
        except BaseException:
            self.close()
            raise

    def _watch(self, source: Watched) -> None:
        filesystems = self._attached().table("filesystems")
        filesystems[filesystems.Key(source.kernel_dev)] = filesystems.Leaf(self._index, _TYPES[source.fstype])

    def fileno(self) -> int:
        """The ring map's descriptor."""
        return self._mapped().descriptor

    def drain(self, limit: int) -> Events | None:
        """See `Sensor.drain`."""
        return self._mapped().drain(limit)

    def advance(self) -> None:
        """See `Sensor.advance`."""
        self._mapped().advance()

    def produced(self) -> int:
        """See `Sensor.produced`."""
        return self._mapped().produced()

    def consumed(self) -> int:
        """See `Sensor.consumed`."""
        return self._mapped().consumed()

    def losses(self) -> dict[str, int]:
        """Totals since attach.

        ring_full: records that did not fit; lost_map_full: of those, the ones whose inode could not be kept either;
        recursion: programs that the kernel skipped because they were running already.
        """
        program = self._attached()
        counters = program.table("losses")
        return {
            # the later cause first: whoever sees a ring_full sees its lost_map_full
            "ring_full": int(sum(counters[counters.Key(_RING_FULL)])),
            "lost_map_full": int(sum(counters[counters.Key(_LOST_MAP_FULL)])),
            "recursion": sum(
                recursion_misses(descriptor, self._misses_at)
                for hook, descriptor in program.programs()
                if hook.tracepoint != _TWICE
            ),
        }

    def lost_inodes(self) -> list[FileId]:
        """Take the inodes whose records were lost. One that is lost again meanwhile is in this answer or the next."""
        table = self._attached().table("lost")
        found = []
        for key in list(table.keys()):
            try:
                del table[key]
            except KeyError:
                continue
            found.append(FileId(key.fs, key.root, key.ino, key.gen))
        return found

    def command(self, pid: int) -> Command | None:
        """See `Sensor.command`."""
        if not self._tracing:
            return None
        value = lookup(self._attached().map_descriptor("commands"), pid.to_bytes(4, sys.byteorder), SIZE)
        return None if value is None else Command.parse(value)

    def coverage(self) -> list[Coverage]:
        """Every hook of the families in use."""
        program = self._attached()
        return [
            Coverage(hook.family, f"raw tracepoint {hook.tracepoint}", covered=True) for hook in program.attached
        ] + [
            Coverage(item.hook.family, f"raw tracepoint {item.hook.tracepoint}", covered=False, reason=item.reason)
            for item in program.excluded
        ]

    def close(self) -> None:
        """Detach and free everything."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        if self._program is not None:
            self._program.close()
            self._program = None

    def _attached(self) -> Program:
        assert self._program is not None, "not attached"
        return self._program

    def _mapped(self) -> Ring:
        assert self._ring is not None, "not attached"
        return self._ring

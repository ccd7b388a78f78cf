"""What all sensors made of eBPF programs share: a ring, losses, and what is in place.

Takes families of hooks (files in ebpf/) and a filesystem; gives the records of every change of its inodes. A hook that
this kernel lacks is reported in `coverage()` and does not fail the rest.
"""

from __future__ import annotations

import os
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from replicator.capture import bpf
from replicator.capture.btf import Btf
from replicator.capture.calls import Calls
from replicator.capture.commands import Command
from replicator.capture.compile import compiled
from replicator.capture.counts import LOST_MAP_FULL, RETURN_MISSED, RING_FULL, UNTOLD, Counts
from replicator.capture.event import Events
from replicator.capture.fence import Fence
from replicator.capture.headers import CACHE
from replicator.capture.layout import Hook
from replicator.capture.load import PROBES, TRACEPOINT, TRAMPOLINES, Program
from replicator.capture.maps import possible_processors
from replicator.capture.preemption import preemptible
from replicator.capture.probes import Probes
from replicator.capture.ring import Ring
from replicator.capture.sensor import Coverage, Filesystem, Watched
from replicator.capture.skips import Skips
from replicator.capture.source import MOST_HOOKS, MOST_SPARES, AnyHook, assemble, target
from replicator.capture.symbols import DIRECT_END, code_of
from replicator.errors import EnvironmentFault
from replicator.model import FileId

# enum rsyncfs_type of ebpf/maps.h
TYPES: Final = {"ext4": 1, "xfs": 2, "btrfs": 3, "tmpfs": 4}
_INODE_KEY: Final = struct.Struct("=QQII")  # struct rsyncfs_inode_key

RING_BYTES: Final = 16 * 1024 * 1024
LOST_INODES: Final = 16384


class BpfSensor(ABC):
    """A `Sensor` without `_prepare`, which says which families it takes.

    `ring_bytes` is the ring's size (a power of two, at least a page), `lost_inodes` how many inodes can be remembered
    by name when it overflows; `tracing`: for `trace`, see `select_sensor`.
    """

    tells_names = False

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
        self._ring: Ring | None = None
        self._probes: Probes | None = None
        self._calls: Calls | None = None
        self._counters: bpf.Counters | None = None
        self._besides: list[Coverage] = []
        self._fence: Fence | None = None
        self._counts: Counts | None = None
        self._spared: Counts | None = None
        self._skips: Skips | None = None

    def attach(self, source: Watched) -> None:
        """Load and attach. EnvironmentFault says what is missing. Twice is a programming error."""
        self._prepare(source, attach=True)
        self._attached().map("filesystems").set(
            struct.pack("=I", source.kernel_dev), struct.pack("=BB", self._index, TYPES[source.fstype])
        )

    def trial(self, fstype: str) -> list[Coverage]:
        """What would be in place on a filesystem of this type: everything is loaded, and removed again."""
        try:
            self._prepare(Filesystem(fstype, 0), attach=False)
            return self.coverage()
        finally:
            self.close()

    @abstractmethod
    def _prepare(self, source: Watched, *, attach: bool) -> None:
        """Load, and attach if wanted. EnvironmentFault says what is missing."""

    def _load(
        self,
        source: Watched,
        families: Sequence[str],
        types: Btf,
        defines: Sequence[str] = (),
        *,
        trampolines: bool = False,
        probes: Probes | None = None,
        attach: bool = True,
    ) -> None:
        """Compile, load and attach. EnvironmentFault says what is missing. Twice is a programming error."""
        assert self._program is None, "attached already"
        refusal = bpf.bpf_refusal()
        if refusal is not None:
            raise EnvironmentFault(refusal)
        self._counters = bpf.Counters(types)
        self._probes = probes
        if self._tracing:
            defines = (*defines, "RSYNCFS_TRACE")
        assembly = assemble(families, source.fstype, types, defines)
        processors = possible_processors()
        try:
            self._program = Program(
                assembly,
                compiled(assembly.text, self._cache),
                types,
                {
                    "events": self._ring_bytes,
                    "lost": self._lost_inodes,
                    "counts": processors,
                    "spared": processors,
                },
                trampolines=trampolines,
                spares=MOST_SPARES if preemptible() else 1,
                probes=probes,
                attach=attach,
            )
            if self._program.has_map("direct_end"):
                self._program.map("direct_end").set(struct.pack("=I", 0), struct.pack("=QQ", *code_of(DIRECT_END)))
            if self._program.has_map("calls"):
                self._calls = Calls(self._program.map("calls"))
            self._counts = Counts(self._program.map("counts").descriptor, processors)
            if self._program.has_map("spared"):
                self._spared = Counts(self._program.map("spared").descriptor, processors, MOST_HOOKS)
            self._skips = Skips(self._program, self._times_skipped, self._times_spared)
            self._fence = Fence(self._program.map("epoch").descriptor)
            self._ring = Ring(self._program.map("events").descriptor, self._ring_bytes)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """The ring map's descriptor."""
        return self._mapped().descriptor

    def drain(self, limit: int) -> Events | None:
        """See `Sensor.drain`."""
        return self._mapped().drain(limit)

    def names(self) -> list[bytes]:
        """See `Sensor.names`."""
        return self._mapped().names

    def advance(self) -> None:
        """See `Sensor.advance`."""
        self._mapped().advance()

    def produced(self) -> int:
        """See `Sensor.produced`."""
        return self._mapped().produced()

    def consumed(self) -> int:
        """See `Sensor.consumed`."""
        return self._mapped().consumed()

    def fence(self) -> int:
        """See `Sensor.fence`."""
        assert self._fence is not None, "not attached"
        return self._fence.advance()

    def untold(self) -> int:
        """See `Sensor.untold`."""
        return self._counted(UNTOLD)

    def losses(self) -> dict[str, int]:
        """Totals since attach.

        ring_full: records that did not fit; lost_map_full: of those, the ones whose inode could not be kept either;
        recursion: programs that the kernel skipped because they were running already, and no spare saw it;
        probe_missed: calls that kernel probes missed, or whose return they missed.
        """
        assert self._skips is not None, "not attached"
        # the later cause first: whoever sees a ring_full sees its lost_map_full
        ring_full, lost_map_full = self._counted(RING_FULL), self._counted(LOST_MAP_FULL)
        missed = self._counted(RETURN_MISSED)
        if self._probes is not None:
            missed += self._probes.missed()
        if self._calls is not None:
            missed += self._calls.overdue()
        return {
            "ring_full": ring_full,
            "lost_map_full": lost_map_full,
            "recursion": self._skips.total(),
            "probe_missed": missed,
        }

    def _counted(self, what: int) -> int:
        assert self._counts is not None, "not attached"
        return self._counts.total(what)

    def _times_skipped(self, program: int) -> int:
        assert self._counters is not None
        return self._counters.read(program).skipped

    def _times_spared(self, hook: AnyHook) -> int:
        return 0 if self._spared is None else self._spared.total(self._attached().place(hook))

    def lost_inodes(self) -> list[FileId]:
        """Take the inodes whose records were lost. One that is lost again meanwhile is in this answer or the next."""
        lost = self._attached().map("lost")
        found = []
        for key in list(dict.fromkeys(lost.keys())):
            if lost.remove(key):
                root, ino, gen, fs = _INODE_KEY.unpack(key)
                found.append(FileId(fs, root, ino, gen))
        return found

    def command(self, pid: int) -> Command | None:
        """See `Sensor.command`."""
        if not self._tracing:
            return None
        value = self._attached().map("commands").get(pid.to_bytes(4, sys.byteorder))
        return None if value is None else Command.parse(value)

    def coverage(self) -> list[Coverage]:
        """Every hook of the families in use."""
        program = self._attached()
        assert self._counters is not None
        found = list(self._besides)
        for item in program.loaded:
            if not item.spare:
                verified = self._counters.read(item.descriptor).verified
                found.append(Coverage(item.hook.family, f"{item.mechanism} {target(item.hook)}", True, "", verified))
        found += [
            Coverage(left.hook.family, described(left.hook), False, left.reason, refused=left.refused)
            for left in program.excluded
        ]
        return found

    def close(self) -> None:
        """Detach and free everything."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        if self._fence is not None:
            self._fence.close()
            self._fence = None
        for counts in (self._counts, self._spared):
            if counts is not None:
                counts.close()
        self._counts = self._spared = self._skips = None
        if self._program is not None:
            self._program.close()
            self._program = None
        if self._probes is not None:
            self._probes.close()
            self._probes = None

    def _attached(self) -> Program:
        assert self._program is not None, "not attached"
        return self._program

    def _mapped(self) -> Ring:
        assert self._ring is not None, "not attached"
        return self._ring


def described(hook: AnyHook) -> str:
    """A hook with its first mechanism, such as "raw tracepoint ext4_da_write_end"."""
    if isinstance(hook, Hook):
        return f"{TRACEPOINT} {hook.tracepoint}"
    return f"{TRAMPOLINES[hook.entry]} or {PROBES[hook.entry]} {hook.function}"

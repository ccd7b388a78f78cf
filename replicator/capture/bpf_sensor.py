"""What all sensors made of eBPF programs share: a ring, losses, and what is in place.

Takes families of hooks (files in ebpf/) and a filesystem; gives the records of every change of its inodes. A hook that
this kernel lacks is reported in `coverage()` and does not fail the rest. With a place to keep them, hooks outlive the
process, and are taken over by the next one if they are just what it would attach itself.
"""

from __future__ import annotations

import os
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from replicator.capture import bpf
from replicator.capture.btf import Types
from replicator.capture.cache import CACHE
from replicator.capture.commands import Command
from replicator.capture.compile import compiled, kernel_types
from replicator.capture.direct import offered
from replicator.capture.event import Events
from replicator.capture.keeping import Keeping
from replicator.capture.kept import Build, Signature, digest
from replicator.capture.layout import Hook
from replicator.capture.load import PROBES, TRACEPOINT, TRAMPOLINES, Program
from replicator.capture.maps import possible_processors
from replicator.capture.notebook import SPEC
from replicator.capture.object import Object
from replicator.capture.preemption import preemptible
from replicator.capture.probes import Probes, room
from replicator.capture.readings import Readings
from replicator.capture.ring import Ring, RingError
from replicator.capture.sensor import Coverage, Filesystem, Watched
from replicator.capture.source import MOST_SPARES, AnyHook, assemble, target
from replicator.capture.symbols import DIRECT_END, code_of
from replicator.errors import EnvironmentFault
from replicator.keeper.pins import Pins
from replicator.model import FileId

# enum rsyncfs_type of ebpf/maps.h
TYPES: Final = {"ext4": 1, "xfs": 2, "btrfs": 3, "tmpfs": 4}
_INODE_KEY: Final = struct.Struct("=QQII")  # struct rsyncfs_inode_key

RING_BYTES: Final = 16 * 1024 * 1024
LOST_INODES: Final = 16384


class BpfSensor(ABC):
    """A `Sensor` without `_prepare`, which says which families it takes.

    `ring_bytes` is the ring's size (a power of two, at least a page), `lost_inodes` how many inodes can be remembered
    by name when it overflows; `tracing`: for `trace`, see `select_sensor`; `keeping`: where hooks are to outlive the
    process; `types`: the kernel's, with those of the filesystem's module, if the caller has them; `direct`: programs
    read the kernel's memory by loads where they can (direct.py).
    """

    tells_names = False
    adopted = False

    def __init__(
        self,
        ring_bytes: int = RING_BYTES,
        lost_inodes: int = LOST_INODES,
        index: int = 0,
        cache: Path = CACHE,
        *,
        tracing: bool = False,
        keeping: Keeping | None = None,
        types: Types | None = None,
        direct: bool = True,
    ) -> None:
        if ring_bytes < os.sysconf("SC_PAGE_SIZE") or ring_bytes & (ring_bytes - 1):
            raise ValueError("the ring's size must be a power of two and at least a page")
        self._ring_bytes = ring_bytes
        self._lost_inodes = lost_inodes
        self._index = index
        self._cache = cache
        self._tracing = tracing
        self._keeping = keeping
        self._types = types
        self._direct = direct
        self._build: Build | None = None
        self._program: Program | None = None
        self._readings: Readings | None = None
        self._probes: Probes | None = None
        self._counters: bpf.Counters | None = None
        self._besides: list[Coverage] = []
        self.not_adopted = ""
        """Why hooks that an earlier process left were not taken over; empty if there were none, or they were."""
        self.not_kept = ""
        """Why these will not outlive the process, though they were to; empty if they will."""

    def attach(self, source: Watched) -> None:
        """Load and attach, or take over. EnvironmentFault says what is missing. Twice is a programming error."""
        types = self._kernel_types(source.fstype)
        self._prepare(source, types, attach=True)
        types.keep()
        if self.adopted:
            # What the process before had drained and not read was told under an epoch that ends here.
            self.fence()
            return
        self._attached().map("filesystems").set(
            struct.pack("=I", source.kernel_dev), struct.pack("=BB", self._index, TYPES[source.fstype])
        )
        if self._keeping is not None and self._build is not None:
            self.not_kept = self._keeping.keep(self._attached(), self._build)

    def trial(self, fstype: str) -> list[Coverage]:
        """What would be in place on a filesystem of this type: everything is loaded, and removed again."""
        try:
            types = self._kernel_types(fstype)
            self._prepare(Filesystem(fstype, 0), types, attach=False)
            types.keep()
            return self.coverage()
        finally:
            self.close()

    def _kernel_types(self, fstype: str) -> Types:
        """Of the kernel and the filesystem's module; those that the constructor got are given away."""
        types, self._types = self._types, None
        return types or kernel_types((fstype, "iomap"))

    @abstractmethod
    def _prepare(self, source: Watched, types: Types, *, attach: bool) -> None:
        """Load, and attach if wanted. EnvironmentFault says what is missing."""

    def _load(
        self,
        source: Watched,
        families: Sequence[str],
        types: Types,
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
        if self._tracing:
            defines = (*defines, "RSYNCFS_TRACE")
        cast = offered(types) if self._direct else None
        assembly = assemble(families, source.fstype, types, defines, cast)
        made = compiled(assembly.text, self._cache)
        processors = possible_processors()
        sizes = {
            "events": self._ring_bytes,
            "lost": self._lost_inodes,
            "counts": processors,
            "spared": processors,
        }
        spares = MOST_SPARES if preemptible() else 1
        decided = {
            **sizes,
            "index": self._index,
            "spares": spares,
            "trampolines": trampolines,
            "probes": probes and room(),
        }
        if self._keeping is not None:
            programs = digest(assembly.text, made, decided)
            self._build = self._keeping.build(source, type(self).__name__, programs)

        def plain() -> Object:
            return compiled(assemble(families, source.fstype, types, defines).text, self._cache)

        def program(adopt: tuple[Pins, Signature] | None = None) -> Program:
            return Program(
                assembly,
                made,
                types,
                sizes,
                trampolines=trampolines,
                spares=spares,
                probes=probes,
                attach=attach,
                more_maps=(SPEC,),
                cast=cast,
                plain=plain if cast is not None else None,
                adopt=adopt,
            )

        if attach and self._adopt(program, probes, processors):
            return
        self._probes = probes
        try:
            self._program = program()
            if self._program.has_map("direct_end"):
                self._program.map("direct_end").set(struct.pack("=I", 0), struct.pack("=QQ", *code_of(DIRECT_END)))
            self._readings = Readings(self._program, self._counters, probes, self._ring_bytes, processors)
        except BaseException:
            self.close()
            raise

    def _adopt(
        self,
        program: Callable[[tuple[Pins, Signature]], Program],
        probes: Probes | None,
        processors: int,
    ) -> bool:
        """Take over what an earlier process left, if it is just what is wanted, whole and sound."""
        if self._keeping is None or self._build is None:
            return False
        left, self.not_adopted = self._keeping.left(self._build)
        if left is None:
            return False
        assert self._counters is not None
        self._probes = probes
        try:
            self._program = program((self._keeping.pins, left))
            self._readings = Readings(self._program, self._counters, probes, self._ring_bytes, processors)
            self._readings.ring.check()
        except (OSError, RingError) as fault:
            self.not_adopted = f"they are not sound: {fault}"
            self.close()
            return False
        self.adopted = True
        return True

    def fileno(self) -> int:
        """The ring map's descriptor."""
        return self._mapped().descriptor

    def drain(self, limit: int) -> Events | None:
        """See `Sensor.drain`."""
        return self._mapped().drain(limit)

    def few(self, most: int) -> tuple[list[tuple[int, ...]], bytes] | None:
        """See `Sensor.few`."""
        return self._mapped().few(most)

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
        return self._read().fence.advance()

    def untold(self) -> int:
        """See `Sensor.untold`."""
        return self._read().untold()

    def losses(self) -> dict[str, int]:
        """Totals since the hooks are there.

        ring_full: records that did not fit; lost_map_full: of those, the ones whose inode could not be kept either;
        recursion: programs that the kernel skipped because they were running already, and no spare saw it;
        probe_missed: calls that kernel probes missed, or whose return they missed.
        """
        return self._read().losses()

    def acknowledge(self, losses: Mapping[str, int]) -> None:
        """See `Sensor.acknowledge`."""
        self._read().notebook.acknowledge(losses)

    def acknowledged(self) -> dict[str, int]:
        """See `Sensor.acknowledged`."""
        return self._read().notebook.acknowledged()

    def lost_inodes(self) -> list[FileId]:
        """See `Sensor.lost_inodes`."""
        keys = dict.fromkeys(self._attached().map("lost").keys())
        return [FileId(fs, root, ino, gen) for root, ino, gen, fs in map(_INODE_KEY.unpack, keys)]

    def forget_lost(self, ids: Iterable[FileId]) -> None:
        """See `Sensor.forget_lost`."""
        lost = self._attached().map("lost")
        for fs, root, ino, gen in ids:
            lost.remove(_INODE_KEY.pack(root, ino, gen, fs))

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
        """Detach and free everything but what is kept."""
        if self._readings is not None:
            self._readings.close()
            self._readings = None
        if self._program is not None:
            self._program.close()
            self._program = None
        if self._probes is not None:
            self._probes.close()
            self._probes = None

    def _attached(self) -> Program:
        assert self._program is not None, "not attached"
        return self._program

    def _read(self) -> Readings:
        assert self._readings is not None, "not attached"
        return self._readings

    def _mapped(self) -> Ring:
        return self._read().ring


def described(hook: AnyHook) -> str:
    """A hook with its first mechanism, such as "raw tracepoint ext4_da_write_end"."""
    if isinstance(hook, Hook):
        return f"{TRACEPOINT} {hook.tracepoint}"
    return f"{TRAMPOLINES[hook.entry]} or {PROBES[hook.entry]} {hook.function}"

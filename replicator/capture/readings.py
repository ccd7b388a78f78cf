"""What one sensor's programs share with the reader: the ring, the epoch, what they count, and what is made of that.

Takes a program's maps, new or taken over from another process; gives records, totals and fences. The memory knows its
own history: totals go on where another process left them.
"""

from __future__ import annotations

from replicator.capture import bpf
from replicator.capture.calls import Calls
from replicator.capture.counts import LOST_MAP_FULL, RETURN_MISSED, RING_FULL, UNTOLD, Counts
from replicator.capture.fence import Fence
from replicator.capture.load import Program
from replicator.capture.notebook import SPEC, Notebook
from replicator.capture.probes import Probes
from replicator.capture.ring import Ring
from replicator.capture.skips import Skips
from replicator.capture.source import MOST_HOOKS, AnyHook


class Readings:
    """Of one program; `close` gives the memory back."""

    def __init__(
        self, program: Program, counters: bpf.Counters, probes: Probes | None, ring_bytes: int, processors: int
    ) -> None:
        """All stay the caller's. RingError, if they were used before, for a ring that cannot be read."""
        self._program, self._counters, self._probes = program, counters, probes
        self.notebook = Notebook(program.map(SPEC.name).descriptor)
        self._calls = Calls(program.map("calls"), self.notebook.calls) if program.has_map("calls") else None
        self._counts = Counts(program.map("counts").descriptor, processors)
        self._spared = (
            Counts(program.map("spared").descriptor, processors, MOST_HOOKS) if program.has_map("spared") else None
        )
        self._skips: Skips | None = Skips(program, self._times_skipped, self._times_spared, notes=self.notebook.skips)
        self.fence = Fence(program.map("epoch").descriptor)
        self.ring = Ring(program.map("events").descriptor, ring_bytes)
        self._untold_before = self._counts.total(UNTOLD)

    def untold(self) -> int:
        """Writes that were left untold since this object was made."""
        return self._counts.total(UNTOLD) - self._untold_before

    def losses(self) -> dict[str, int]:
        """Totals since the programs were loaded, see `BpfSensor.losses`."""
        assert self._skips is not None, "closed"
        # the later cause first: whoever sees a ring_full sees its lost_map_full
        ring_full, lost_map_full = self._counts.total(RING_FULL), self._counts.total(LOST_MAP_FULL)
        missed = self._counts.total(RETURN_MISSED)
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

    def _times_skipped(self, program: int) -> int:
        return self._counters.read(program).skipped

    def _times_spared(self, hook: AnyHook) -> int:
        return 0 if self._spared is None else self._spared.total(self._program.place(hook))

    def close(self) -> None:
        """May be called twice; nothing else may be called afterwards."""
        self.ring.close()
        self.fence.close()
        self._counts.close()
        if self._spared is not None:
            self._spared.close()
        self._skips = self._calls = None  # which look into the notebook's memory
        self.notebook.close()

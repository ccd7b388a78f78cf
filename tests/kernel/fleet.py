"""The machines of one run of the matrix: as many at once as the memory takes, each for some runs of pytest.

Takes what is to be run on which kernel, the oldest first; starts, waits and stops in the caller's thread, for machines
end with it.
"""

from __future__ import annotations

import compileall
import os
from collections.abc import Mapping, Sequence

from tests.kernel.machine import HELPERS, MEMORY, PROJECT, Kernel, Machine, Run
from tests.support.deadline import eventually
from tests.support.helpers import build_all

LIMIT = 55 * 60.0
"""Seconds that a machine may take."""
SPARE = 1024
"""MiB beside the guest's memory that a machine needs: the emulator, and the rest of the host."""


def _memory() -> int:
    """MiB that are free for use."""
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("MemAvailable:"))


class Fleet:
    """All machines. `stop` must be called."""

    def __init__(self, wanted: Mapping[Kernel, Sequence[Run]]) -> None:
        # An emulated processor is one thread: three machines of one on a host of two cores keep both busy to the end.
        self.at_once = max(1, min(len(wanted), _memory() // (MEMORY + SPARE)))
        cpus = max(1, (os.cpu_count() or 1) // self.at_once)
        # The newest kernel has most to do: spare programs. If the others let it go first, none is alone at the end.
        newest = next(reversed(list(wanted)), None)
        self.machines = {
            kernel: Machine(kernel, runs, LIMIT, cpus, yields=kernel != newest) for kernel, runs in wanted.items()
        }
        self._waiting = list(self.machines.values())
        build_all(HELPERS)
        # A clone has nothing compiled yet, and each machine would do it anew.
        for package in ("replicator", "tests"):
            compileall.compile_dir(PROJECT / package, quiet=1)

    def finished(self, kernel: Kernel, run: Run) -> Machine:
        """Wait until that run is over, or its machine; the others go on meanwhile."""
        machine = self.machines[kernel]
        eventually(lambda: self._over(machine, run), LIMIT * len(self.machines) + 60, f"{run.name} ends", every=0.5)
        return machine

    def _over(self, machine: Machine, run: Run) -> bool:
        running = sum(one.running() for one in self.machines.values())
        while self._waiting and running < self.at_once:
            self._waiting.pop(0).start()
            running += 1
        return machine.code(run.name) is not None or (machine not in self._waiting and not machine.running())

    def stop(self) -> None:
        """End all that run."""
        self._waiting.clear()
        for machine in self.machines.values():
            machine.stop()

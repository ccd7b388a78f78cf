"""Cuts of the receiver's power under a load, in legs: after each, the trees are compared.

What a cut is, and where what it leaves is to be seen, is for those who derive from `CutLegs`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path

from tests.soak.crashes import PATIENCE, POWER, Result
from tests.soak.load import load
from tests.soak.witness import Witness
from tests.support.oracle import differences
from tests.support.pair import Pair

LEG = 5
"""Cuts between two comparisons."""


class CutLegs(ABC):
    """One run on one type of filesystem."""

    processes = 2
    rate = 150.0
    """Steps a second of each process of the load."""
    patience = PATIENCE
    """Seconds for a barrier."""

    def __init__(self, fstype: str, cuts: int, seed: int, directory: Path, stop_at: float) -> None:
        self.fstype, self.cuts, self.seed, self.directory, self.stop_at = fstype, cuts, seed, directory, stop_at
        self.result = Result(fstype, seed, {POWER: cuts})
        self._rounds = 0

    @abstractmethod
    def _cut(self, pair: Pair, witness: Witness) -> None:
        """Let the power go at some moment, hold what is left to what was acknowledged, and go on."""

    def _compared(self, pair: Pair, witness: Witness) -> list[str]:
        """How the trees differ; nothing is under way."""
        witness.check("at the end of a leg", still=True)
        return differences(pair.source, pair.replica)

    def _all_legs(self, pair: Pair, witness: Witness, outside: Path) -> None:
        """Until all cuts were made, or something is broken; the result is kept also if that is an AssertionError."""
        try:
            while self.result.crashes[POWER] < self.cuts and not self.result.problems and not witness.problems:
                self._leg(pair, witness, outside)
                if self.result.unfinished:
                    break
        finally:
            self.result.problems += witness.problems
            self.result.records, self.result.waits = witness.written, witness.waits
            self.result.acknowledgements = witness.acknowledgements

    def _leg(self, pair: Pair, witness: Witness, outside: Path) -> None:
        self._rounds += 1
        seed = self.seed * 1000 + self._rounds
        work, logs = pair.source / "work", self.directory / "state"
        with load(work, outside, logs, seed, self.processes, self.rate) as round_:
            witness.go_on()
            for _ in range(min(LEG, self.cuts - self.result.crashes[POWER])):
                if time.monotonic() > self.stop_at:
                    self.result.unfinished = True
                    break
                self._cut(pair, witness)
                if witness.problems:
                    return
        self.result.operations += round_.operations
        witness.pause()
        pair.wait(self.patience)
        wrong = self._compared(pair, witness)
        self.result.comparisons += 1
        if wrong:
            self.result.problems.append(f"leg {self._rounds}: source against replica:\n" + "\n".join(wrong))

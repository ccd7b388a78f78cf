"""The receiver's machine loses its power, again and again: its disk forgets what was not flushed, and it starts anew.

Takes a number of cuts and a seed; gives a `Result` as the other crashes do. The replica and the receiver's state lie on
a disk with a volatile cache (tests/support/volatile.py). At a cut the disk stops first, then the receiver is killed,
the filesystem is thrown away with all that the page cache had, and the disk's platter is mounted; the receiver starts
with the boot id of another boot. What was acknowledged before the cut is looked for before it starts, and after.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from pathlib import Path
from random import Random

from tests.soak.crashes import PATIENCE, POWER, Result
from tests.soak.load import load
from tests.soak.witness import Witness
from tests.support.deadline import SLOW
from tests.support.filesystems import filesystem
from tests.support.oracle import differences
from tests.support.outlet import Outlet
from tests.support.pair import Pair

LEG = 5
"""Cuts between two comparisons."""
REBOOTED = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'


class PowerCuts:
    """One run on one type of filesystem."""

    def __init__(self, fstype: str, cuts: int, seed: int, directory: Path, stop_at: float = float("inf")) -> None:
        self.fstype, self.cuts, self.seed, self.directory, self.stop_at = fstype, cuts, seed, directory, stop_at
        self.result = Result(fstype, seed, {POWER: cuts})
        self._dice = Random(f"{seed} power")
        self._boot = directory / "boot_id"
        self._rounds = 0

    def run(self) -> Result:
        """Do all of it; ends at the first leg with a problem."""
        began = time.monotonic()
        with (
            filesystem(self.fstype, self.directory / "source") as source,
            Outlet(self.fstype, self.directory / "replica", self.seed) as outlet,
        ):
            for place in (source / "root", source / "outside", outlet.point / "root", self.directory / "state"):
                place.mkdir()
            pair = Pair(
                source / "root",
                outlet.point / "root",
                self.directory / "state",
                receive_state=outlet.point / "state",
            )
            pair.receive_prefix = ["unshare", "--mount", "sh", "-c", REBOOTED, str(self._boot)]
            try:
                self._new_boot()
                pair.start()
                with Witness(pair.source, pair.replica, pair.send_state, self.seed, PATIENCE * SLOW) as witness:
                    witness.looks = False
                    try:
                        self._legs(pair, outlet, witness, source / "outside")
                    finally:
                        self.result.problems += witness.problems
                        self.result.records, self.result.waits = witness.written, witness.waits
                        self.result.acknowledgements = witness.acknowledgements
            except AssertionError as error:
                self.result.problems.append(str(error))
            finally:
                pair.kill()
        self.result.seconds = time.monotonic() - began
        return self.result

    def _legs(self, pair: Pair, outlet: Outlet, witness: Witness, outside: Path) -> None:
        while self.result.crashes[POWER] < self.cuts:
            self._rounds += 1
            seed = self.seed * 1000 + self._rounds
            with load(pair.source / "work", outside, self.directory / "state", seed, 2, 150.0) as round_:
                witness.go_on()
                for _ in range(min(LEG, self.cuts - self.result.crashes[POWER])):
                    if time.monotonic() > self.stop_at:
                        self.result.unfinished = True
                        break
                    self._cut(pair, outlet, witness)
            self.result.operations += round_.operations
            witness.pause()
            pair.wait(PATIENCE)
            witness.check("at the end of a leg", still=True)
            wrong = differences(pair.source, pair.replica)
            self.result.comparisons += 1
            if wrong:
                self.result.problems.append(f"leg {self._rounds}: source against replica:\n" + "\n".join(wrong))
            if self.result.unfinished or self.result.problems or witness.problems:
                return

    def _cut(self, pair: Pair, outlet: Outlet, witness: Witness) -> None:
        time.sleep(0.2 + self._dice.random())  # not to wait for something: the moment is the test's choice
        assert pair.healthy(), pair.receiver and pair.receiver.text()
        owed = witness.acknowledged
        outlet.cut()
        assert pair.receiver is not None
        with contextlib.suppress(AssertionError):
            pair.receiver.kill()
        outlet.off()
        outlet.boot()
        self._new_boot()
        when = f"after power cut {self.result.crashes[POWER] + 1}"
        witness.check(when, still=True, owed=owed)
        began = time.monotonic()
        pair.start_receiver()
        self.result.ready["receive"].append(time.monotonic() - began)
        witness.check(f"{when} and a recovery", owed=owed)
        self.result.crashes[POWER] += 1

    def _new_boot(self) -> None:
        self._boot.write_text(f"{uuid.UUID(int=Random(f'{self.seed} {time.monotonic_ns()}').getrandbits(128))}\n")


def power_cuts(fstype: str, cuts: int, seed: int, directory: Path, stop_at: float = float("inf")) -> Result:
    """One run below `directory`."""
    return PowerCuts(fstype, cuts, seed, directory, stop_at).run()

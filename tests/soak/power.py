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
from tests.soak.legs import CutLegs
from tests.soak.witness import Witness
from tests.support.deadline import SLOW
from tests.support.filesystems import filesystem
from tests.support.outlet import Outlet
from tests.support.pair import Pair

REBOOTED = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'


class PowerCuts(CutLegs):
    """One run on one type of filesystem."""

    def __init__(self, fstype: str, cuts: int, seed: int, directory: Path, stop_at: float = float("inf")) -> None:
        super().__init__(fstype, cuts, seed, directory, stop_at)
        self._dice = Random(f"{seed} power")
        self._boot = directory / "boot_id"
        self._outlet = Outlet(fstype, directory / "replica", seed)

    def run(self) -> Result:
        """Do all of it; ends at the first leg with a problem."""
        began = time.monotonic()
        with (
            filesystem(self.fstype, self.directory / "source") as source,
            self._outlet as outlet,
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
                    self._all_legs(pair, witness, source / "outside")
            except AssertionError as error:
                self.result.problems.append(str(error))
            finally:
                pair.kill()
        self.result.seconds = time.monotonic() - began
        return self.result

    def _cut(self, pair: Pair, witness: Witness) -> None:
        outlet = self._outlet
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

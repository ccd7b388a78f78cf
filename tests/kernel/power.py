"""`python -m tests.kernel.power`: the receiver's machine loses its power, again and again, and is killed with it.

The receiver runs in a virtual machine with a distribution's kernel (machine.py), with its replica and its state on a
filesystem of a disk with a volatile cache (tests/support/volatile.py); the sender, the load and the witness run on this
host. A cut is a SIGKILL of the whole machine, after which the disk forgets what was not flushed. What is left of it is
mounted, as a copy, and must have all that was acknowledged before the cut; then the machine boots on the disk itself,
and the sender goes on. At the end of a leg the trees are compared: the source, and the disk as it would be if the power
went now. Prints a table; exit code 1 if anything was broken. Root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from random import Random

from tests.kernel.machine import PROJECT, Kernel, die_with_parent, emulated, kernels
from tests.soak.crashes import POWER, Result
from tests.soak.legs import CutLegs
from tests.soak.report import quantile, summary
from tests.soak.witness import Witness
from tests.support.certificates import Tls, authority, issue
from tests.support.deadline import eventually
from tests.support.filesystems import filesystem, make_image, run, unmount
from tests.support.pair import Pair, free_port
from tests.support.volatile import VolatileDisk

MEMORY = 1024
"""MiB of the machine."""
SIZE = 1024 << 20
MOUNT = {"ext4": "loop", "xfs": "loop,nouuid"}
"""Options with which a copy is mounted."""


class ReceiversMachine:
    """A machine that is switched on and cut off; what is on its disk stays in `platter`."""

    def __init__(self, kernel: Kernel, fstype: str, directory: Path, seed: int, tls: Tls) -> None:
        self.port = free_port()
        self.shared, self.platter = directory / "shared", directory / "platter"
        self._kernel, self._fstype, self._directory, self._seed, self._tls = kernel, fstype, directory, seed, tls
        self._disk: VolatileDisk | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.boots = self.lost = self.kept = 0
        """`lost`, `kept`: writes that a cut has taken away, and that had reached the platter without being asked to."""
        self.shared.mkdir(parents=True, exist_ok=True)
        make_image(fstype, self.platter, SIZE)

    def on(self) -> None:
        """Boot. To be called in the thread that lives longest: the machine ends with it."""
        self.boots += 1
        self._disk = VolatileDisk(self.platter, self._directory / f"nbd{self.boots}", self._seed * 1000 + self.boots)
        words = ["bash", PROJECT / "tests/kernel/receiver.sh", PROJECT, self.shared, self._fstype]
        words += ["--listen", "10.0.2.15:7410", *self._tls.options()]
        devices = [
            *("-drive", f"file=nbd+unix:///?socket={self._disk.socket},format=raw,if=virtio"),
            *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-10.0.2.15:7410"),
            *("-device", "virtio-net-pci,netdev=net,romfile="),
        ]
        with (self.shared / "console.log").open("ab") as console:
            self._process = subprocess.Popen(
                emulated(self._kernel, self.shared, shlex.join(map(str, words)), MEMORY, 1, devices),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(self.shared)},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def cut(self) -> None:
        """The power goes, now; the platter is all there is afterwards."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself, which its caller will notice
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        disk, self._disk = self._disk, None
        if disk is not None:
            disk.cut()
            self.lost, self.kept = self.lost + disk.lost, self.kept + disk.kept
            disk.close()

    @contextlib.contextmanager
    def left(self, point: Path) -> Iterator[None]:
        """What would be there if the power went (or has gone) now, mounted at `point`."""
        copy = point.with_suffix(".copy")
        if self._disk is None:
            run("cp", "--sparse=always", self.platter, copy)
        else:
            self._disk.copy(copy)
        point.mkdir(exist_ok=True)
        run("mount", "-o", MOUNT[self._fstype], copy, point)
        try:
            yield
        finally:
            unmount(point)
            copy.unlink()

    def told(self) -> str:
        """The ends of its logs."""
        names = ("machine.log", "receiver.log", "console.log")
        logs = [(name, self.shared / name) for name in names if (self.shared / name).exists()]
        return "\n".join(f"--- {name}\n{path.read_text(errors='replace')[-3000:]}" for name, path in logs)


class MachineCuts(CutLegs):
    """One run with one type of filesystem."""

    processes = 1
    rate = 50.0
    patience = 300.0  # an emulated processor takes fifteen times as long

    def __init__(self, kernel: Kernel, fstype: str, cuts: int, seed: int, directory: Path, stop_at: float) -> None:
        super().__init__(fstype, cuts, seed, directory, stop_at)
        self._dice = Random(f"{seed} {fstype} power")
        self._point = directory / "left"
        ca = authority(directory / "shared/tls")
        self._tls = issue(directory / "shared/tls", "sender", ca), issue(directory / "shared/tls", "receiver", ca)
        self.machine = ReceiversMachine(kernel, fstype, directory, seed, self._tls[1])

    def run(self) -> Result:
        """Do all of it; ends at the first leg with a problem."""
        began = time.monotonic()
        with filesystem(self.fstype, self.directory / "source") as source:
            for place in (source / "root", source / "outside", self.directory / "state"):
                place.mkdir()
            address = f"127.0.0.1:{self.machine.port}"
            pair = Pair(source / "root", self._point / "root", self.directory / "state", connect=address, tls=self._tls)
            try:
                self.machine.on()
                pair.start_sender(ready=False)
                witness = Witness(pair.source, pair.replica, pair.send_state, self.seed, self.patience)
                witness.looks = False
                with witness:
                    self._all_legs(pair, witness, source / "outside")
            except AssertionError as error:
                self.result.problems.append(f"{error}\n{self.machine.told()}")
            finally:
                self.machine.cut()
                pair.kill()
        self.result.seconds = time.monotonic() - began
        return self.result

    def _compared(self, pair: Pair, witness: Witness) -> list[str]:
        """Times are set once the bytes are durable: they come to the disk with what its filesystem commits next."""
        wrong: list[str] = []

        def same() -> bool:
            nonlocal wrong
            with self.machine.left(self._point):
                wrong = super(MachineCuts, self)._compared(pair, witness)
            return not wrong

        with contextlib.suppress(AssertionError):
            eventually(same, 60, every=1)
        return wrong

    def _acknowledged_anew(self, witness: Witness) -> None:
        before = witness.acknowledgements

        def done() -> bool:
            assert self.machine.running(), "the machine has ended by itself"
            return witness.acknowledgements > before or bool(witness.problems)

        eventually(done, self.patience, "a record is acknowledged")

    def _cut(self, pair: Pair, witness: Witness) -> None:
        began = time.monotonic()
        self._acknowledged_anew(witness)
        self.result.ready["receive"].append(time.monotonic() - began)
        time.sleep(3 * self._dice.random())  # not to wait for something: the moment is the test's choice
        owed = witness.acknowledged
        self.machine.cut()
        with self.machine.left(self._point):
            witness.check(f"after power cut {self.result.crashes[POWER] + 1}", still=True, owed=owed)
        self.result.crashes[POWER] += 1
        self.machine.on()


def power_cuts(
    fstype: str, kernel: Kernel, cuts: int, seed: int, directory: Path, stop_at: float = float("inf")
) -> tuple[Result, int]:
    """One run below `directory`, in a process of its own; its result, and how many writes the cuts took away."""
    die_with_parent()
    with tempfile.TemporaryDirectory(prefix=f"{fstype}-", dir=directory, ignore_cleanup_errors=True) as place:
        made = MachineCuts(kernel, fstype, cuts, seed, Path(place), stop_at)
        result = made.run()
        if result.problems:
            kept = directory / f"{fstype}-logs"
            shutil.copytree(made.machine.shared, kept, dirs_exist_ok=True, symlinks=True)
        return result, made.machine.lost


def all_cuts(
    fstypes: Sequence[str], kernel: Kernel, cuts: int, seed: int, directory: Path, stop_at: float = float("inf")
) -> list[tuple[Result, int]]:
    """All filesystems at the same time, each in a process of its own."""
    job = partial(power_cuts, kernel=kernel, cuts=cuts, seed=seed, directory=directory, stop_at=stop_at)
    with ProcessPoolExecutor(len(fstypes), mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(job, fstypes))


def table(results: Sequence[tuple[Result, int]]) -> str:
    """A row for each run."""
    lines = [
        f"{'filesystem':<12}{'cuts':>6}{'acks':>7}{'broken':>8}{'compared':>10}{'writes lost':>13}{'boot p50':>10}"
        f"{'seconds':>9}"
    ]
    for result, lost in results:
        boot = quantile(result.ready["receive"], 0.5)
        lines.append(
            f"{result.where:<12}{result.crashes[POWER]:>6}{result.acknowledgements:>7}{len(result.problems):>8}"
            f"{result.comparisons:>10}{lost:>13}{boot:>9.0f}s{result.seconds:>9.0f}"
        )
    return "\n".join(lines)


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernel.power", description=__doc__)
    parser.add_argument("--cuts", type=int, default=20, help="of each filesystem's machine")
    parser.add_argument("--fs", nargs="+", choices=MOUNT, default=list(MOUNT))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--kernel", default="6.12", help="its series; scripts/kernels fetches them")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    words = parser.parse_args()
    found = {kernel.series: kernel for kernel in kernels()}
    if words.kernel not in found:
        parser.error(f"there is no kernel {words.kernel} below build/kernels: run scripts/kernels")
    with tempfile.TemporaryDirectory(prefix="rsyncfs-power-", dir="/var/tmp", ignore_cleanup_errors=True) as place:
        stop_at = time.monotonic() + 60 * words.minutes
        results = all_cuts(words.fs, found[words.kernel], words.cuts, words.seed, Path(place), stop_at)
    print(table(results))
    for result, _ in results:
        for problem in result.problems:
            print(f"\n{problem}\nagain with: python -m tests.kernel.power --fs {result.where} --seed {result.seed}")
    if words.json is not None:
        words.json.parent.mkdir(parents=True, exist_ok=True)
        runs = [{**summary(result), "writes_lost": lost} for result, lost in results]
        words.json.write_text(json.dumps({"kernel": found[words.kernel].release, "runs": runs}, indent=2))
    return 1 if any(result.problems or result.unfinished for result, _ in results) else 0


if __name__ == "__main__":
    sys.exit(main())

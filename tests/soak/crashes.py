"""One pair on one pair of filesystems, and everything that is done to it.

Takes counts of each kind of crash and a seed; runs the workload and the witness meanwhile, and compares the trees with
the oracle each time that a leg is over. Gives a `Result`, whose `problems` say what broke, and when. The seed decides
the workload, the order of the crashes and how long after the last one each comes; not what was on its way just then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.soak.load import load
from tests.soak.witness import Witness
from tests.support import pair as pairs
from tests.support.cutter import Cut, CuttingProxy, Direction
from tests.support.deadline import SLOW, eventually
from tests.support.filesystems import filesystem
from tests.support.oracle import differences
from tests.support.pair import Pair, Process, free_port

KINDS = ("sender", "receiver", "both", "cut")
"""Who is killed; or the connection is."""
POWER = "power"
"""The receiver's machine; see tests/soak/power.py."""
PATIENCE = 120.0
"""Seconds of an ordinary host for a barrier on a host that also runs the workload, and for a start."""
LONGEST_CUT = 2_000_000
"""Bytes that pass at most before a cut."""
TWICE = ("trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT")
"""As XFS alone shows ACLs a second time."""
CAUSE = 'rsyncfs_resyncs_total{cause="'
RECEIVERS = "compare"


@dataclass(frozen=True)
class Crashes:
    """How many of each kind, and under what."""

    sender: int = 0
    receiver: int = 0
    both: int = 0
    cut: int = 0
    seed: int = 1
    leg: int = 20
    """Crashes between two comparisons of the trees."""
    processes: int = 2
    """Of the workload."""
    rate: float | None = 150.0
    """Steps a second of each of them."""
    rescans: int | None = None
    """So many walks of the tree may come after the first; None: they are counted, not judged."""

    def kinds(self) -> list[str]:
        """All crashes, in the order of the seed."""
        found = [kind for kind in KINDS for _ in range(getattr(self, kind))]
        Random(self.seed).shuffle(found)
        return found


@dataclass
class Result:
    """What came of it."""

    where: str
    seed: int
    asked: dict[str, int] = field(default_factory=dict)
    """How many crashes of each kind were to be made."""
    crashes: Counter[str] = field(default_factory=Counter)
    comparisons: int = 0
    records: int = 0
    acknowledgements: int = 0
    operations: int = 0
    resyncs: Counter[str] = field(default_factory=Counter)
    """By cause; the first scan is not among them."""
    unready: int = 0
    """Processes that were killed before they were ready."""
    ready: dict[str, list[float]] = field(default_factory=lambda: {"send": [], "receive": []})
    """Seconds from a start to "ready"."""
    waits: list[float] = field(default_factory=list)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    unfinished: bool = False
    """The time was over before all crashes were made."""


class Campaign:
    """One run. `stop_at`: no crash is begun after that moment of the monotonic clock."""

    def __init__(
        self, crashes: Crashes, source: Path, replica: Path, outside: Path, state: Path, where: str, stop_at: float
    ) -> None:
        self.crashes, self.outside, self.state, self.stop_at = crashes, outside, state, stop_at
        self.dice = Random(f"{crashes.seed} moments")
        self.result = Result(where, crashes.seed, {kind: getattr(crashes, kind) for kind in KINDS})
        port = free_port()
        self.proxy = CuttingProxy("127.0.0.1", port)
        self.pair = Pair(source, replica, state, connect=f"127.0.0.1:{self.proxy.port}")
        self.pair.port = port
        self.witness: Witness | None = None
        self._begun = {"send": 0.0, "receive": 0.0}
        self._seen: Counter[str] = Counter()
        self._rounds = 0

    # -- the whole

    def run(self) -> Result:
        """Do all of it; ends at the first leg with a problem."""
        began = time.monotonic()
        with self.proxy:
            try:
                self._start("receive")
                self._start("send")
                self._ready("receive")
                self._ready("send")
                self._seen = self._resyncs()  # the first scan is no walk again
                self._legs()
            except AssertionError as error:
                self.result.problems.append(str(error))
            finally:
                self._note_resyncs()
                self.pair.kill()
        if self.witness is not None:
            self.result.problems += self.witness.problems
            self.result.records, self.result.waits = self.witness.written, self.witness.waits
            self.result.acknowledgements = self.witness.acknowledgements
        self._judge_resyncs()
        self.result.seconds = time.monotonic() - began
        return self.result

    def _legs(self) -> None:
        kinds = self.crashes.kinds()
        pair = self.pair
        with Witness(pair.source, pair.replica, pair.send_state, self.crashes.seed, PATIENCE * SLOW) as witness:
            self.witness = witness
            for start in range(0, len(kinds), self.crashes.leg):
                leg = kinds[start : start + self.crashes.leg]
                self._rounds += 1
                storm = "renames" if self._rounds % 3 == 0 else None
                with load(
                    pair.source / "work",
                    self.outside,
                    self.state,
                    self.crashes.seed * 1000 + self._rounds,
                    self.crashes.processes,
                    self.crashes.rate,
                    storm,
                ) as round_:
                    witness.go_on()
                    for number, kind in enumerate(leg, start + 1):
                        if time.monotonic() > self.stop_at:
                            self.result.unfinished = True
                            break
                        self._crash(kind, witness, f"after crash {number} ({kind})")
                self.result.operations += round_.operations
                self._compare(witness)
                if witness.problems or self.result.problems or self.result.unfinished:
                    break

    def _compare(self, witness: Witness) -> None:
        """Nothing moves, both ends run: the trees are the same."""
        self.proxy.forget_cuts()
        for side in ("receive", "send"):
            self._ready(side)
        witness.pause()
        self.pair.wait(PATIENCE)
        witness.check("at the end of a leg", still=True)
        wrong = differences(
            self.pair.source, self.pair.replica, ignore_xattrs=TWICE if "-to-" in self.result.where else ()
        )
        self.result.comparisons += 1
        if wrong:
            self.result.problems.append(f"leg {self._rounds}: source against replica:\n" + "\n".join(wrong))

    # -- crashes

    def _crash(self, kind: str, witness: Witness, when: str) -> None:
        sides = {"sender": ["send"], "receiver": ["receive"], "both": ["send", "receive"], "cut": []}[kind]
        for side in sides:
            if self.dice.random() < 0.75:
                self._ready(side)
        self._alive()
        time.sleep(self.dice.random() * 0.3)  # not to wait for something: the moment is the test's choice
        if kind == "cut":
            self._cut()
        else:
            if "send" in sides:
                self._note_resyncs()
            if self.dice.random() < 0.5:
                sides.reverse()
            for side in sides:
                os.kill(self._process(side).pid, signal.SIGKILL)
            for side in sides:
                self._bury(side)
            witness.check(when, still="receive" in sides)
            for side in reversed(sides):
                self._start(side)
        self.result.crashes[kind] += 1

    def _cut(self) -> None:
        after = int(LONGEST_CUT ** self.dice.random())
        direction: Direction = "back" if self.dice.random() < 0.3 else "out"
        if direction == "back":
            after //= 100
        before = self.proxy.made
        self.proxy.cut_after(Cut(direction, after, "rst" if self.dice.random() < 0.5 else "fin"))

        def done() -> bool:
            self._alive()
            return self.proxy.made > before

        eventually(done, PATIENCE, f"a connection brings {after} bytes {direction}")

    # -- both ends

    def _process(self, side: str) -> Process:
        process = self.pair.sender if side == "send" else self.pair.receiver
        assert process is not None
        return process

    def _start(self, side: str) -> None:
        self._begun[side] = time.monotonic()
        if side == "send":
            self._seen = Counter()
            self.pair.start_sender(ready=False)
        else:
            self.pair.start_receiver(ready=False)

    def _ready(self, side: str) -> None:
        try:
            self._process(side).ready(PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._state()}") from None
        if self._begun[side]:
            self.result.ready[side].append(time.monotonic() - self._begun[side])
            self._begun[side] = 0.0

    def _state(self) -> str:
        """What both ends say of themselves, and where each of their threads is. They do not survive it."""
        told = [self.pair.status_text()]
        for side in ("send", "receive"):
            process = self._process(side)
            for task in Path(f"/proc/{process.pid}/task").glob("*"):
                with contextlib.suppress(OSError):
                    told.append(f"{side} {task.name} {(task / 'wchan').read_text()} {(task / 'syscall').read_text()}")
            process.process.send_signal(signal.SIGABRT)  # faulthandler writes the stacks
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.process.wait(10)
            told.append(f"`{side}`:\n{process.text(12_000)}")
        return "\n".join(told)

    def _bury(self, side: str) -> None:
        process = self._process(side)
        process.kill()
        if self._begun[side]:
            self.result.unready += "ready" not in process.lines
            self._begun[side] = 0.0
        log = process.log.read_text(errors="replace")
        assert "Traceback" not in log, f"`{side}`:\n{log[-8000:]}"
        process.log.unlink()
        if process in pairs.started:
            pairs.started.remove(process)

    def _alive(self) -> None:
        for side in ("send", "receive"):
            process = self._process(side)
            assert process.running(), f"`{side}` {process.fate()} by itself:\n{process.text()}"

    def _note_resyncs(self) -> None:
        """Of the sender that runs, so far: to be asked before it is killed."""
        with contextlib.suppress(OSError):
            found = self._resyncs()
            self.result.resyncs.update(found - self._seen)
            self._seen = found

    def _resyncs(self) -> Counter[str]:
        samples = self.pair.metrics()
        return Counter(
            {
                key[len(CAUSE) : -len('"}')]: int(samples[key])
                for key in samples
                if key.startswith(CAUSE) and samples[key]
            }
        )

    def _judge_resyncs(self) -> None:
        # A killed receiver that finds none of the inodes it last noted asks for a comparison: no sender caused it.
        allowed, found = self.crashes.rescans, self.result.resyncs.total() - self.result.resyncs[RECEIVERS]
        if allowed is not None and found > allowed:
            self.result.problems.append(f"{found} walks of the tree, and {allowed} are allowed: {self.result.resyncs}")


def campaign(crashes: Crashes, where: str, directory: Path, stop_at: float = float("inf")) -> Result:
    """Make the filesystems for it (`where`: "ext4", or "ext4-to-xfs") below `directory`, and run it."""
    fstype, _, other = where.partition("-to-")
    with (
        filesystem(fstype, directory / "source") as source,
        filesystem(other or fstype, directory / "replica") as replica,
    ):
        for place in (source / "root", replica / "root", source / "outside", directory / "state"):
            place.mkdir()
        return Campaign(
            crashes, source / "root", replica / "root", source / "outside", directory / "state", where, stop_at
        ).run()

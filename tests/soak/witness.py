"""Who holds the replica to its word: numbered records, and what `wait` said of them.

Takes both trees; a thread of its own writes record after record, each in every form (appended, in place, through a
mapping, renamed over, as a name), then waits for the barrier. When that is passed, the record is *acknowledged*: from
then on the replica must show it, or a later one, in each form. Looks at the replica itself, after each acknowledgement
and whenever it is asked to.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from replicator.errors import RsyncfsError
from replicator.observe.control import ask

RECORD = 64
"""Bytes; the number, and what makes a torn one known."""
CELL = 8192
"""Where in its file the one lies that is written in place."""
ROOM = 16_384
AGAIN = 5
"""Looks at what might be just being written by the receiver, before it counts."""


def record(number: int) -> bytes:
    """What is written of a number."""
    return f"{number:>20} {number * 2_654_435_761 % 2**64:>20} ".encode().ljust(RECORD - 1, b".") + b"\n"


def number_in(data: bytes) -> int:
    """Which record that is; -1 if it is none."""
    with contextlib.suppress(ValueError, IndexError):
        number = int(data.split()[0])
        if data == record(number):
            return number
    return -1


class Witness:
    """A context manager. `problems` are broken acknowledgements, in words."""

    def __init__(self, source: Path, replica: Path, state: Path, seed: int, patience: float) -> None:
        """`state`: the sender's; `patience`: seconds within which a barrier must be passed while both ends live."""
        self._here, self._there = source / "witness", replica / "witness"
        self._state, self._patience = state, patience
        self.looks = True
        """Whether it looks at once after an acknowledgement; else only when it is asked to."""
        self._dice = Random(seed)
        self._paused, self._over = threading.Event(), threading.Event()
        self._idle = threading.Lock()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.written = self.acknowledged = self.acknowledgements = self.unanswered = 0
        self.problems: list[str] = []
        self.waits: list[float] = []
        """Seconds that each acknowledgement took."""
        self._prepare()

    def _prepare(self) -> None:
        (self._here / "names").mkdir(parents=True)
        (self._here / "names/0").touch()
        (self._here / "log").write_bytes(record(0))
        for name in ("cell", "mapped"):
            (self._here / name).write_bytes(bytes(CELL) + record(0) + bytes(ROOM - CELL - RECORD))
        (self._here / "swapped").write_bytes(record(0))

    # -- writing

    def _write(self, number: int) -> None:
        data, here = record(number), self._here
        sync = self._dice.random() < 0.5
        self._put(here / "log", data, os.O_APPEND, None, sync)
        self._put(here / "cell", data, 0, CELL, sync)
        with (here / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), ROOM) as mapping:
            mapping[CELL : CELL + RECORD] = data
            if sync:
                mapping.flush()
        self._put(here / "swapping", data, os.O_CREAT, None, sync)
        os.rename(here / "swapping", here / "swapped")
        os.rename(here / f"names/{number - 1}", here / f"names/{number}")

    @staticmethod
    def _put(path: Path, data: bytes, flags: int, at: int | None, sync: bool) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o644)
        try:
            if at is None:
                os.write(fd, data)
            else:
                os.pwrite(fd, data, at)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def _work(self) -> None:
        while not self._over.is_set():
            if self._paused.wait(0) or not self._idle.acquire(timeout=0.1):
                time.sleep(0.01)
                continue
            try:
                self._one()
            except Exception as error:
                self.problems.append(f"the witness itself failed: {error!r}")
                return
            finally:
                self._idle.release()

    def _one(self) -> None:
        self.written += 1
        self._write(self.written)
        began = time.monotonic()
        try:
            for answer in ask(self._state, {"op": "wait"}, self._patience):
                if "error" in answer:
                    self.unanswered += 1
                    return
        except TimeoutError:
            self.problems.append(f"record {self.written}: `wait` did not end within {self._patience:g} s")
            return
        except (RsyncfsError, OSError):  # the sender was killed
            self.unanswered += 1
            time.sleep(0.02)
            return
        self.waits.append(time.monotonic() - began)
        self.acknowledged = self.written
        self.acknowledgements += 1
        if self.looks:
            self.check("after its acknowledgement")

    # -- looking

    def check(self, when: str, still: bool = False, owed: int | None = None) -> None:
        """Hold the replica to what was acknowledged (or to `owed`, then). `still`: nobody is writing to it now."""
        owed = self.acknowledged if owed is None else owed
        wrong = []
        for _ in range(1 if still else AGAIN):
            wrong = [f"{name} {what}" for name, look in self._forms().items() if (what := look(owed))]
            if not wrong:
                return
            time.sleep(0.02)
        self.problems.append(f"{when}, record {owed} was acknowledged, but on the replica: {'; '.join(wrong)}")

    def _forms(self) -> dict[str, Callable[[int], str]]:
        return {
            "log": self._look_log,
            "cell": lambda owed: self._look_at("cell", CELL, owed),
            "mapped": lambda owed: self._look_at("mapped", CELL, owed),
            "swapped": lambda owed: self._look_at("swapped", 0, owed),
            "names": self._look_names,
        }

    def _look_log(self, owed: int) -> str:
        data = self._read("log")
        for number in range(max(0, owed - 200), owed + 1):
            if data[number * RECORD : (number + 1) * RECORD] != record(number):
                return f"lacks record {number} ({len(data)} bytes)"
        return ""

    def _look_at(self, name: str, at: int, owed: int) -> str:
        data = self._read(name)
        found = number_in(data[at : at + RECORD])
        return "" if found >= owed else f"has record {found} ({len(data)} bytes)"

    def _look_names(self, owed: int) -> str:
        try:
            found = [int(name) for name in os.listdir(self._there / "names")]
        except OSError as error:
            return f"cannot be listed: {error}"
        return "" if max(found, default=-1) >= owed else f"has {found}"

    def _read(self, name: str) -> bytes:
        try:
            return (self._there / name).read_bytes()
        except OSError as error:
            return f"{error.strerror}".encode()

    # -- life

    def pause(self) -> None:
        """Return when it writes and waits no more."""
        self._paused.set()
        with self._idle:
            return

    def go_on(self) -> None:
        """After `pause`."""
        self._paused.clear()

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(self._patience + 5)

"""A sensor and a queue of names whose hooks outlive them, and what of that is in the kernel.

Takes a source directory and a state directory; gives what was changed, whatever process was told of it.
`Watcher.journal` is what a sender would be: what it drains is in a file before it is given back.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from replicator.capture import bpf
from replicator.capture.bpf_sensor import BpfSensor
from replicator.capture.event import EventKind
from replicator.capture.names import Names, Overflow, SlotLook
from replicator.capture.select import select_sensor
from replicator.keeper.bpffs import sets
from replicator.keeper.hooks import Hooks
from replicator.keeper.pins import key_of
from replicator.tree.handles import SourceRoot
from tests.support.deadline import SLOW, eventually
from tests.support.programs import listed

LOST = b"\0"
"""In place of a name: some were lost."""
_RECORD = struct.Struct("<QI")  # offset; bytes of a name that follows


class Watcher:
    """What a sender has of the kernel; a context manager that leaves its hooks."""

    def __init__(
        self,
        source: Path,
        state: Path,
        *,
        ring_bytes: int = 1 << 23,
        lost_inodes: int = 1024,
        environ: MutableMapping[str, str] | None = None,
        sensor: str = "auto",
    ) -> None:
        self.source = SourceRoot.open(source)
        self.hooks = Hooks.open(state, self.source, environ={} if environ is None else environ)
        self.sensor: BpfSensor = select_sensor(
            sensor,
            self.source.fstype,
            ring_bytes=ring_bytes,
            lost_inodes=lost_inodes,
            keeping=self.hooks.keeping,
        )
        self.sensor.attach(self.source)
        self.hooks.tell(self.sensor)
        self.names: Names | None = None
        if not self.sensor.tells_names:
            self.names = Names(self.source, store=self.hooks.store, adopt=self.sensor.adopted)
            self.hooks.tell_names(self.names)
        self.hooks.begun()
        self._told: set[bytes] = set()

    @property
    def adopted(self) -> bool:
        """Whether all of it was there before."""
        return self.hooks.state()["adopted"]

    def offsets(self, file: Path) -> list[int]:
        """Where a file was written, in order, since the last question."""
        target, number = self.sensor.produced(), file.stat().st_ino
        found: list[int] = []
        while self.sensor.consumed() < target:
            if (events := self.sensor.drain(4096)) is not None:
                wanted = (events["kind"] == EventKind.WRITE) & (events["ino"] == number)
                found += events["off"][wanted].tolist()
                self._told.update(self.sensor.names())
                self.sensor.advance()
        return found

    def told(self) -> set[bytes]:
        """Names that were told since the last question; `LOST` if some were not."""
        if self.names is None:
            self.offsets(Path(self.source.path))
            found, self._told = self._told, set()
            return found
        found = set()
        while True:
            for look in self.names.drain_queued():
                if isinstance(look, SlotLook):
                    found.add(look.slot.name)
                elif isinstance(look, Overflow):
                    found.add(LOST)
            self.names.advance()
            if not self.names.behind:
                return found

    def journal(self, path: Path, over: Callable[[], bool]) -> None:
        """Write down what comes until `over`, and give it back then."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        watched = [one.fileno() for one in (self.sensor, self.names) if one is not None]
        while True:
            last = over()
            select.select(watched, [], [], 0 if last else 0.01)
            if self.names is not None:
                more = True
                while more:
                    for look in self.names.drain_queued():
                        if isinstance(look, SlotLook):
                            self._put(descriptor, _RECORD.pack(0, len(look.slot.name)) + look.slot.name)
                        elif isinstance(look, Overflow):
                            self._put(descriptor, _RECORD.pack(0, len(LOST)) + LOST)
                    self.names.advance()
                    more = self.names.behind
            while (events := self.sensor.drain(4096)) is not None:
                records = np.zeros(int((events["kind"] == EventKind.WRITE).sum()), "<u8, <u4")
                records["f0"] = events["off"][events["kind"] == EventKind.WRITE]
                self._put(descriptor, records.tobytes())
                for name in self.sensor.names():
                    self._put(descriptor, _RECORD.pack(0, len(name)) + name)
                self.sensor.advance()
            if last:
                os.close(descriptor)
                return

    @staticmethod
    def _put(descriptor: int, data: bytes) -> None:
        assert os.write(descriptor, data) == len(data)

    def close(self) -> None:
        """As a sender that is stopped."""
        if self.names is not None:
            self.names.close()
        self.sensor.close()
        self.hooks.close()
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def write(file: Path, first: int, count: int) -> list[int]:
    """One byte at each third offset from `first` on; the offsets."""
    offsets = [3 * number for number in range(first, first + count)]
    with file.open("ab"):
        pass
    fd = os.open(file, os.O_WRONLY)
    for offset in offsets:
        os.pwrite(fd, b"y", offset)
    os.close(fd)
    return offsets


WRITES, FILES = 80, 50
WRITER = f"""
import os, sys, time
fd = os.open(sys.argv[1] + "/file", os.O_WRONLY)
number = 0
for line in sys.stdin:
    for _ in range({FILES}):
        for _ in range({WRITES}):
            os.pwrite(fd, b"y", number)
            number += 1
        os.close(os.open(sys.argv[1] + "/n%d" % number, os.O_CREAT | os.O_WRONLY))
        time.sleep(0.001)
"""


def kill_readers(source: Path, state: Path, scratch: Path, rounds: int, sensor: str = "auto") -> None:
    """Kill so many readers at random moments while files are made and written to; what they journaled is all of it.

    The ring and the queue have room for everything, should nobody come to read.
    """

    def watcher() -> Watcher:
        return Watcher(source, state, ring_bytes=1 << 24, sensor=sensor)

    chance = random.Random(rounds)
    (source / "file").touch()
    watcher().close()
    writer = subprocess.Popen([sys.executable, "-c", WRITER, source], stdin=subprocess.PIPE, text=True)
    assert writer.stdin is not None
    journals = [scratch / f"journal{number}" for number in range(rounds + 1)]
    try:
        for journal in journals[:-1]:

            def read(journal: Path = journal) -> None:
                with watcher() as watching:
                    assert watching.adopted
                    watching.journal(journal, lambda: False)

            # Half of them once they read, half of them whenever it is.
            reading, moment = chance.random() < 0.5, chance.uniform(0, 0.08)
            writer.stdin.write("\n")
            writer.stdin.flush()
            with forked(read):
                if reading:
                    eventually(journal.exists, 20, "it reads", every=0.001)
                begun = time.monotonic()
                while time.monotonic() - begun < moment:
                    pass
        writer.stdin.close()
        assert writer.wait(60 * SLOW) == 0
    finally:
        writer.kill()
        writer.wait()
    with watcher() as watching:
        assert watching.adopted
        watching.journal(journals[-1], lambda: True)
        assert not any(watching.sensor.losses().values())
    offsets: set[int] = set()
    names: set[bytes] = set()
    for journal in journals:
        told, named = _read_journal(journal)
        offsets.update(told)
        names |= named
    assert offsets == set(range(rounds * FILES * WRITES))
    assert names - {b"file"} == {b"n%d" % (WRITES * number) for number in range(1, rounds * FILES + 1)}


def _read_journal(path: Path) -> tuple[list[int], set[bytes]]:
    """Offsets and names; the last one may be cut."""
    data = path.read_bytes() if path.exists() else b""
    offsets: list[int] = []
    names: set[bytes] = set()
    at = 0
    while at + _RECORD.size <= len(data):
        offset, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if not length:
            offsets.append(offset)
        elif at + length <= len(data):
            names.add(data[at : at + length])
        at += length
    return offsets, names


@contextlib.contextmanager
def forked(act: Callable[[], None]) -> Iterator[int]:
    """`act` in a process of its own, which is killed at the end."""
    process = os.fork()
    if process == 0:
        try:
            act()
            signal.pause()
        finally:
            os._exit(1)
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def programs(state: Path) -> set[int]:
    """The numbers of the programs that are kept for a state directory."""
    place = sets() / key_of(state)
    found: set[int] = set()
    for path in place.glob("program_*") if place.is_dir() else ():
        descriptor = bpf.pinned(path)
        found.add(bpf.program_id(descriptor))
        os.close(descriptor)
    return found


def gone(numbers: set[int]) -> None:
    """Wait until the kernel has none of these programs."""
    assert numbers
    eventually(lambda: not numbers & {program.id for program in listed("prog")}, 10, f"programs {numbers} are gone")


def holders(state: Path) -> list[int]:
    """Processes that hold descriptors for a state directory."""
    found = subprocess.run(
        ["pgrep", "-f", f"holder.py {state.resolve()}/"], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]

"""What it costs a writer that its tree is watched: 512-byte writes, by what watches them, and calls that write nothing.

Takes a directory on a filesystem that can be watched (/var/tmp if none is given). Writes go to one place over and over,
and in a row: bare, with the hooks of each sensor that this kernel offers, which tell all writes or leave out what need
not be told twice, with an inotify watch on the directory (IN_MODIFY), and with a fanotify mark on the filesystem
(FAN_MODIFY). Other calls are made bare and with hooks: those are to cost them nothing.

What counts is the writing thread's processor time, with some 0.1 µs of Python's own in each call. All take turns within
each round, with a bare turn before and after each, which it is compared with; medians of the rounds, and how far they
may be off (two standard errors). Nobody reads meanwhile, so this is the writer's cost alone: between runs, this thread
takes what was told. That favours inotify and fanotify, which merge an event into an equal one that nobody has read: a
queue of theirs holds a single one here. After each turn whoever watched must have seen the writes, or no figure counts.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import struct
import tempfile
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat, starmap
from pathlib import Path
from typing import Any

from report import Bars, Report, arguments, parsed, publish
from rich.table import Table

from replicator import syscalls
from replicator.capture.compile import kernel_types
from replicator.capture.event import EventKind
from replicator.capture.marks import mark, refusal
from replicator.capture.names import InodeLook, parse
from replicator.capture.sensor import Sensor
from replicator.capture.tracepoint import TracepointSensor
from replicator.capture.vfs import MECHANISM, VfsSensor, mechanisms
from replicator.errors import RsyncfsError
from replicator.model import FileId
from replicator.tree.handles import SourceRoot

BYTES = 512
TIMES = 3000
"""Calls of one run."""
RUNS = 3
"""Of each kind in a turn, after one that does not count."""
FENCES = 50
PLACE, ROW = "one place", "in a row"
WRITES = (PLACE, ROW)
GETPPID, FSTAT, PREAD, OPEN = "getppid", "fstat", f"pread, {BYTES} bytes", "openat + close"
CALLS = (GETPPID, FSTAT, PREAD, OPEN)
BARE, AGAIN = "bare", "bare, once more"
INOTIFY, FANOTIFY = "inotify IN_MODIFY", "fanotify FAN_MODIFY"
ALL, LESS = "tells all", "leaves out repeats"
TARGET = 0.15
"""µs that hooks which leave out repeats may cost a write at one place."""

IN_MODIFY = 0x2
FAN_REPORT_FID = 0x200
IN_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name

Turn = dict[str, float]
"""By kind of call: the median of its runs, ns a call."""


class File:
    """The file that is written to, and read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self._data = os.urandom(BYTES)
        os.pwrite(self.fd, bytes(TIMES * BYTES), 0)

    def run(self, kind: str) -> None:
        """So many calls, none of which makes the file longer."""
        calls: Iterable[Any]
        if kind == PLACE:
            calls = map(os.pwrite, repeat(self.fd, TIMES), repeat(self._data), repeat(0))
        elif kind == ROW:
            calls = map(os.pwrite, repeat(self.fd), repeat(self._data), range(0, TIMES * BYTES, BYTES))
        elif kind == GETPPID:
            calls = starmap(os.getppid, repeat((), TIMES))
        elif kind == FSTAT:
            calls = map(os.fstat, repeat(self.fd, TIMES))
        elif kind == PREAD:
            calls = map(os.pread, repeat(self.fd, TIMES), repeat(BYTES), repeat(0))
        else:
            calls = map(os.close, map(os.open, repeat(self._path, TIMES), repeat(os.O_RDONLY)))
        deque(calls, maxlen=0)

    def turn(self, kinds: Iterable[str], between: Callable[[], None] = lambda: None) -> Turn:
        """Runs of each kind, one after the other; `between` is called after each."""
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(RUNS + 1):
            for kind, runs in found.items():
                begun = time.thread_time_ns()
                self.run(kind)
                used = (time.thread_time_ns() - begun) / TIMES
                between()
                if number:
                    runs.append(used)
        return {kind: statistics.median(runs) for kind, runs in found.items()}

    def close(self) -> None:
        os.close(self.fd)


class Watcher(ABC):
    """Who is told of writes, until `close`."""

    variants: tuple[str, ...]
    """What it is called in each of its turns."""

    @abstractmethod
    def begin(self, variant: str) -> None:
        """A turn begins."""

    @abstractmethod
    def take(self) -> None:
        """Take what was told."""

    @abstractmethod
    def complaint(self, variant: str, writes: int) -> str:
        """Why a turn does not count in which so many writes were made in each way; empty if it counts."""

    @abstractmethod
    def close(self) -> None: ...


class Hooks(Watcher):
    """A sensor at work."""

    def __init__(self, name: str, make: Callable[[], Sensor], source: SourceRoot, id: FileId) -> None:
        self.variants = (f"{name}, {ALL}", f"{name}, {LESS}")
        self._id = id
        self._told = self._untold = 0
        with _mechanism(name):
            self.sensor = make()
        try:
            with _mechanism(name):
                self.sensor.attach(source)
            self._losses = self.sensor.losses()
        except BaseException:
            self.close()
            raise

    def begin(self, variant: str) -> None:
        self.take()
        if variant.endswith(LESS):
            self.sensor.fence()
        self._told, self._untold = 0, self.sensor.untold()

    def take(self) -> None:
        while (records := self.sensor.drain(1 << 16)) is not None:
            self.sensor.advance()
            ours = (records["ino"] == self._id.ino) & (records["gen"] == self._id.gen)
            self._told += int((ours & (records["kind"] != int(EventKind.ATTR))).sum())

    def complaint(self, variant: str, writes: int) -> str:
        untold = self.sensor.untold() - self._untold
        if self.sensor.losses() != self._losses:
            return f"records were lost: {self.sensor.losses()}"
        if self._told + untold < len(WRITES) * writes:
            return f"of {len(WRITES) * writes} writes {self._told} were told, and {untold} left out"
        if variant.endswith(LESS) and untold < 0.9 * writes:
            return f"of {writes} writes at one place only {untold} were left out"
        return ""

    def close(self) -> None:
        self.sensor.close()


class Queue(Watcher):
    """A queue of the kernel's own that tells which file was written to."""

    def __init__(self, name: str, fd: int) -> None:
        self.variants = (name,)
        self._fd = fd
        self._missed = 0

    def begin(self, variant: str) -> None:
        self.take()
        self._missed = 0

    def take(self) -> None:
        told = False
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                break
            told = self.tells(data) or told
        self._missed += not told

    @abstractmethod
    def tells(self, data: bytes) -> bool:
        """Whether the file is told of."""

    def complaint(self, variant: str, writes: int) -> str:
        return f"{self._missed} runs were not told of" if self._missed else ""

    def close(self) -> None:
        os.close(self._fd)


class Inotify(Queue):
    """A watch on a directory with one file."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        super().__init__(INOTIFY, libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(directory), IN_MODIFY) < 0:
            raise SystemExit(f"cannot watch {directory} by inotify: {os.strerror(ctypes.get_errno())}")

    def tells(self, data: bytes) -> bool:
        return bool(IN_EVENT.unpack_from(data)[1] & IN_MODIFY)


class Fanotify(Queue):
    """A mark on a filesystem."""

    def __init__(self, source: SourceRoot, id: FileId) -> None:
        flags = syscalls.FAN_CLASS_NOTIF | FAN_REPORT_FID | syscalls.FAN_NONBLOCK | syscalls.FAN_CLOEXEC
        super().__init__(FANOTIFY, syscalls.fanotify_init(flags))
        self._source, self._id = source, id
        try:
            mark(self._fd, source, syscalls.FAN_MODIFY)
        except OSError as error:
            self.close()
            raise refusal(source, error) from error

    def tells(self, data: bytes) -> bool:
        return InodeLook(self._id) in parse(data, self._source.id_of_handle).looks


@contextmanager
def _mechanism(name: str) -> Iterator[None]:
    """With the way of hooking functions that a sensor's name speaks of, if it does."""
    before = os.environ.pop(MECHANISM, None)
    if ", " in name:
        os.environ[MECHANISM] = name.split(", ")[1]
    try:
        yield
    finally:
        os.environ.pop(MECHANISM, None)
        if before is not None:
            os.environ[MECHANISM] = before


def sensors() -> tuple[dict[str, Callable[[], Sensor]], dict[str, str]]:
    """How to make each sensor that is offered here, and why each other one is not."""
    offered: dict[str, Callable[[], Sensor]] = {"tracepoint": TracepointSensor}
    absent: dict[str, str] = {}
    found = mechanisms(kernel_types())
    for mechanism, reason in (("fexit", found.trampolines), ("kprobe", found.probes)):
        if reason is None:
            offered[f"vfs, {mechanism}"] = VfsSensor
        else:
            absent[f"vfs, {mechanism}"] = reason
    return offered, absent


@dataclass
class Compared:
    """The turns of one variant, each with what the same took in bare turns before and after it."""

    turns: list[tuple[Turn, Turn]] = field(default_factory=list)

    def add(self, turn: Turn, before: Turn, after: Turn) -> None:
        self.turns.append((turn, {kind: (before[kind] + after[kind]) / 2 for kind in turn}))

    def figures(self) -> dict[str, dict[str, float]]:
        """By kind of call. `error_us` is two standard errors of `us`, what it takes more than bare."""
        found: dict[str, dict[str, float]] = {}
        for kind in self.turns[0][0]:
            pairs = [(turn[kind], bare[kind]) for turn, bare in self.turns]
            more = [(one - bare) / 1000 for one, bare in pairs]
            low, _, high = statistics.quantiles(more, n=4)
            found[kind] = {
                "ns": statistics.median(one for one, _ in pairs),
                "ratio": statistics.median(one / bare for one, bare in pairs),
                "us": statistics.median(more),
                # of a median, by the quartiles, which a few disturbed turns do not move
                "error_us": 2 * 0.93 * (high - low) / len(more) ** 0.5,
            }
        return found


def fences(sensor: Sensor) -> dict[str, float]:
    """A fence, and a membarrier(2) that reaches all processors in its place: µs, in turn."""
    found: dict[str, list[float]] = {}
    for _ in range(FENCES):
        for name, act in (("fence", sensor.fence), ("membarrier", syscalls.membarrier)):
            begun = time.perf_counter_ns()
            act()
            found.setdefault(name, []).append((time.perf_counter_ns() - begun) / 1000)
    return {f"{name}_us": statistics.median(values) for name, values in found.items()}


def measure(directory: Path, rounds: int) -> dict[str, Any]:
    """All rounds, as one object."""
    offered, absent = sensors()
    compared: dict[str, Compared] = {}
    barriers: dict[str, float] = {}
    with (
        SourceRoot.open(directory) as source,
        tempfile.TemporaryDirectory(prefix="rsyncfs-bench-", dir=directory) as below,
    ):
        file = File(Path(below) / "file")
        id = source.id_of(file.fd)
        watchers: list[Callable[[], Watcher]] = [
            partial(Hooks, name, make, source, id) for name, make in offered.items()
        ]
        watchers += [partial(Inotify, Path(below)), partial(Fanotify, source, id)]
        try:
            file.turn((*WRITES, *CALLS))  # so that nobody is first
            for _ in range(rounds):
                bare = [file.turn((*WRITES, *CALLS))]
                seen: list[dict[str, Turn]] = []
                for watch in watchers:
                    seen.append(watched(watch(), file, barriers))
                    bare.append(file.turn((*WRITES, *CALLS)))
                for number, turns in enumerate(seen):
                    for variant, turn in turns.items():
                        compared.setdefault(variant, Compared()).add(turn, *bare[number : number + 2])
                for number in range(1, len(bare) - 1):
                    compared.setdefault(AGAIN, Compared()).add(bare[number], bare[number - 1], bare[number + 1])
        finally:
            file.close()
    return {
        "filesystem": source.fstype,
        "rounds": rounds,
        "target_us": TARGET,
        "variants": {variant: each.figures() for variant, each in compared.items()},
        "bare_ns": {
            kind: statistics.median(bare[kind] for _, bare in compared[AGAIN].turns) for kind in (*WRITES, *CALLS)
        },
        "absent": absent,
        **barriers,
    }


def watched(watcher: Watcher, file: File, barriers: dict[str, float]) -> dict[str, Turn]:
    """The turns of one that watches, which is closed then. The first sensor's fences are measured besides."""
    turns: dict[str, Turn] = {}
    try:
        for variant in watcher.variants:
            watcher.begin(variant)
            turns[variant] = file.turn((*WRITES, *CALLS) if variant.endswith(ALL) else WRITES, watcher.take)
            complaint = watcher.complaint(variant, (RUNS + 1) * TIMES)
            if complaint:
                raise SystemExit(f"{variant}: {complaint}; no figure counts")
        if isinstance(watcher, Hooks) and not barriers:
            barriers |= fences(watcher.sensor)
    finally:
        watcher.close()
    return turns


def tables(figures: dict[str, Any]) -> list[Table]:
    """Of writes, and of other calls."""
    writes = Table("", *(word for kind in WRITES for word in (f"{kind}: ns", "times bare", "µs more")))
    calls = Table("with hooks", "bare ns", "ns", "times bare", "µs more", "")
    writes.add_row(BARE, *(word for kind in WRITES for word in (f"{figures['bare_ns'][kind]:.0f}", "", "")))
    for variant, found in figures["variants"].items():
        writes.add_row(variant, *(word for kind in WRITES for word in words(found[kind])))
        for kind in CALLS if variant.endswith(ALL) else ():
            name = f"{variant.removesuffix(f', {ALL}')}: {kind}"
            noise = "within noise" if found[kind]["within_noise"] else "beyond noise"
            calls.add_row(name, f"{figures['bare_ns'][kind]:.0f}", *words(found[kind]), noise)
    return [writes, calls]


def words(row: dict[str, float]) -> tuple[str, str, str]:
    """How long a call takes, how many bare ones that is, and what it takes more."""
    return f"{row['ns']:.0f}", f"{row['ratio']:.3f}", f"{row['us']:+.3f} ±{row['error_us']:.3f}"


def judge(figures: dict[str, Any]) -> list[str]:
    """Note what is within noise, and whether the target is met; in words."""
    variants = figures["variants"]
    for variant, found in variants.items():
        for kind in CALLS if variant.endswith(ALL) else ():
            noise = variants[AGAIN][kind]
            found[kind]["within_noise"] = abs(found[kind]["us"]) <= max(
                found[kind]["error_us"], abs(noise["us"]) + noise["error_us"]
            )
    others = {name: variants[name][PLACE]["us"] for name in (INOTIFY, FANOTIFY)}
    said = []
    figures["met"] = {}
    for variant, found in variants.items():
        if variant.endswith(LESS):
            cost = found[PLACE]["us"]
            met = figures["met"][variant] = cost <= TARGET and cost < min(others.values())
            said.append(
                f"target: at most +{TARGET} µs, and below {' and '.join(others)} "
                f"({', '.join(f'{value:+.2f}' for value in others.values())}): {variant}, {PLACE}: {cost:+.3f} µs: "
                f"{'met' if met else 'not met'}"
            )
    ratio = figures["membarrier_us"] / figures["fence_us"]
    said.append(f"a fence: {figures['fence_us']:.1f} µs; by membarrier(2) {ratio:.0f} times that")
    return said + [f"not here: {name}: {reason}" for name, reason in figures["absent"].items()]


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="how often each has its turn, at least 2")
    options = parsed(parser)
    try:
        figures = measure(options.directory, options.rounds)
    except RsyncfsError as error:
        raise SystemExit(str(error)) from error
    remarks = judge(figures)
    picture = Bars(
        f"What watching costs a write of {BYTES} bytes on {figures['filesystem']} "
        f"(bare: {figures['bare_ns'][PLACE] / 1000:.1f} µs)",
        "µs more than bare",
        {variant: {kind: found[kind]["us"] for kind in WRITES} for variant, found in figures["variants"].items()},
        target=TARGET,
    )
    publish(Report("writer", figures, tables(figures), picture, remarks), options)


if __name__ == "__main__":
    main()

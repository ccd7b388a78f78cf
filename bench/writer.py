"""What the hooks cost a writer: 512-byte writes, bare and with each sensor that this kernel offers.

Takes a directory (/var/tmp if none is given); prints a table or a JSON object. What counts is the writing thread's
processor time; sensors take turns within each round, and medians are compared, so that a ratio holds even where the
machine is not quiet. Nobody reads what the hooks tell meanwhile: this is the writer's cost alone, with a bare call from
Python (some 0.1 µs of it Python's own) as 1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from replicator import syscalls
from replicator.capture.compile import kernel_types
from replicator.capture.sensor import Sensor
from replicator.capture.tracepoint import TracepointSensor
from replicator.capture.vfs import MECHANISM, VfsSensor, mechanisms
from replicator.errors import RsyncfsError
from replicator.tree.handles import SourceRoot

BYTES = 512
WRITES = 5000
RUNS = 6
"""Of each way, each time that a sensor has its turn."""
FENCES = 200
WAYS = {"place": "one place", "sequential": "in a row"}
BARE = "none"

Times = dict[str, dict[str, list[float]]]
"""By variant and way: ns of a write, one for each run."""


def offsets(way: str) -> Iterable[int]:
    """Where the writes of one way go; all of it lies below the file's end."""
    return repeat(0, WRITES) if way == "place" else range(0, WRITES * BYTES, BYTES)


def measure(fd: int, into: dict[str, list[float]]) -> None:
    """Some runs of each way."""
    data = os.urandom(BYTES)
    for way in [*WAYS] * RUNS:
        places = offsets(way)
        begun = time.thread_time_ns()
        deque(map(os.pwrite, repeat(fd), repeat(data), places), maxlen=0)
        into.setdefault(way, []).append((time.thread_time_ns() - begun) / WRITES)


def drop(sensor: Sensor) -> None:
    """Let go what the sensor has told."""
    while sensor.drain(1 << 16) is not None:
        sensor.advance()


def sensors(types: Any) -> tuple[dict[str, Callable[[], Sensor]], dict[str, str]]:
    """How to make each sensor that is offered here, and why each other one is not."""
    offered: dict[str, Callable[[], Sensor]] = {"tracepoint": TracepointSensor}
    absent: dict[str, str] = {}
    found = mechanisms(types)
    for mechanism, refusal in (("fexit", found.trampolines), ("kprobe", found.probes)):
        if refusal is None:
            offered[f"vfs, {mechanism}"] = VfsSensor
        else:
            absent[f"vfs, {mechanism}"] = refusal
    return offered, absent


@contextmanager
def attached(name: str, make: Callable[[], Sensor], source: SourceRoot) -> Iterator[Sensor]:
    """The sensor at work."""
    before = os.environ.pop(MECHANISM, None)
    if ", " in name:
        os.environ[MECHANISM] = name.split(", ")[1]
    sensor = make()
    try:
        sensor.attach(source)
        yield sensor
    finally:
        sensor.close()
        os.environ.pop(MECHANISM, None)
        if before is not None:
            os.environ[MECHANISM] = before


def fences(sensor: Sensor, into: dict[str, list[float]]) -> None:
    """A fence, and a membarrier(2) that reaches all processors in its place: µs, in turn."""
    for _ in range(FENCES):
        for name, act in (("fence", sensor.fence), ("membarrier", syscalls.membarrier)):
            begun = time.perf_counter_ns()
            act()
            into.setdefault(name, []).append((time.perf_counter_ns() - begun) / 1000)


def run(directory: Path, rounds: int) -> dict[str, Any]:
    """All rounds, as one object."""
    offered, absent = sensors(kernel_types())
    times: Times = {}
    barriers: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="rsyncfs-bench-", dir=directory) as below:
        source = SourceRoot.open(Path(below))
        fd = os.open(Path(below) / "file", os.O_RDWR | os.O_CREAT)
        try:
            os.pwrite(fd, bytes(WRITES * BYTES), 0)
            measure(fd, {})  # so that nobody is first
            for number in range(rounds):
                measure(fd, times.setdefault(BARE, {}))
                for name, make in offered.items():
                    with attached(name, make, source) as sensor:
                        measure(fd, times.setdefault(f"{name}, tells all", {}))
                        drop(sensor)
                        sensor.fence()
                        measure(fd, times.setdefault(f"{name}, leaves out", {}))
                        drop(sensor)
                        if not number:
                            fences(sensor, barriers)
        finally:
            os.close(fd)
            source.close()
    return {
        "cpus": os.cpu_count(),
        "kernel": os.uname().release,
        "filesystem": source.fstype,
        "variants": [
            {"sensor": name} | {key: value for way in WAYS for key, value in cost(times, name, way).items()}
            for name in times
        ],
        "absent": absent,
        "fence_us": statistics.median(barriers["fence"]),
        "membarrier_us": statistics.median(barriers["membarrier"]),
    }


def cost(times: Times, name: str, way: str) -> dict[str, float]:
    """The median of a variant, and how many times a bare write it is."""
    median = statistics.median(times[name][way])
    return {f"{way}_ns": median, f"{way}_ratio": median / statistics.median(times[BARE][way])}


def show(result: dict[str, Any]) -> None:
    """The result as a table."""
    table = Table("sensor", *(f"{said}: ns, ratio" for said in WAYS.values()))
    for variant in result["variants"]:
        told = (f"{variant[f'{way}_ns']:.0f}, {variant[f'{way}_ratio']:.2f}" for way in WAYS)
        table.add_row(variant["sensor"], *told)
    console = Console()
    console.print(f"a write of {BYTES} bytes on {result['filesystem']}, Linux {result['kernel']}")
    console.print(table)
    ratio = result["membarrier_us"] / result["fence_us"]
    console.print(f"a fence: {result['fence_us']:.1f} µs; by membarrier(2) {ratio:.0f} times that")
    for name, reason in result["absent"].items():
        console.print(f"not here: {name}: {reason}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("/var/tmp"), help="where the file is made")
    parser.add_argument("--rounds", type=int, default=7, help="how often each sensor has its turn")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("the bench needs root: run it with sudo")
    try:
        result = run(arguments.directory, arguments.rounds)
    except RsyncfsError as error:
        raise SystemExit(str(error)) from error
    if arguments.json:
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
    else:
        show(result)


if __name__ == "__main__":
    main()

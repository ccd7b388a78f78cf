"""How long a small write takes to be visible on the replica: the lag, from the return of the write.

Takes a directory with room for sparse images (/var/tmp if none is given). Writers append 512 bytes, or overwrite 4 KiB
at random, in a small file and in one of 1 GiB, one write after the other with a pause between; and once more while a
file of 4 GiB is being replicated. Seen from outside: a watch (inotify) on the replica, and then its bytes. `durable`
is what rsyncfs measured itself, until the acknowledgement of the sync. What is compared with takes turns in one run:
the bare chain (bare.py) and, with --peers, other replicators. Lags of different machines cannot be compared.
"""

from __future__ import annotations

import ctypes
import os
import random
import select
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bare import NAME, Bare
from ends import Replicator, Rsyncfs, Site, compared, site
from peers import PEERS
from report import Bars, Report, arguments, parsed, publish
from rich.table import Table

WRITES = 300
SLOW = 5
"""Writes where each takes seconds."""
PAUSE = 0.01
SMALL = 64 << 10
LARGE = 1 << 30
LOAD = 4 << 30
LIMIT = 120.0
"""Seconds that one write may take to be seen."""
ENOUGH = 30.0
"""Seconds after which a slow replicator is not asked for more."""
STAMP = struct.Struct("!Q")

WATCHED = 0x2 | 0x4 | 0x80 | 0x100
"""IN_MODIFY, IN_ATTRIB, IN_MOVED_TO, IN_CREATE."""


class Watch:
    """Waits until a file of the replica has certain bytes."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if libc.inotify_add_watch(self._fd, os.fsencode(directory), WATCHED) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def until(self, path: Path, offset: int, data: bytes, limit: float = LIMIT) -> float:
        """The time (time.perf_counter) when `path` had `data` at `offset`."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            try:
                fd = os.open(path, os.O_RDONLY)
                try:
                    found = os.pread(fd, len(data), offset)
                finally:
                    os.close(fd)
            except FileNotFoundError:
                found = b""
            if found == data:
                return time.perf_counter()
            if self._poll.poll(1000):
                try:
                    os.read(self._fd, 1 << 16)
                except BlockingIOError:
                    continue
        raise SystemExit(f"{path} did not get what was written within {limit:.0f} s")

    def exists(self, path: Path, limit: float = LIMIT) -> float:
        """The time when there was something under that name."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if path.exists():
                return time.perf_counter()
            if self._poll.poll(1000):
                os.read(self._fd, 1 << 16)
        raise SystemExit(f"{path} was not there within {limit:.0f} s")

    def close(self) -> None:
        """Look no more."""
        os.close(self._fd)


class Workload:
    """Writes of one kind to the site's file, which is there on both sides before anything is started."""

    def __init__(self, name: str, size: int, length: int, *, append: bool) -> None:
        self.name, self.size, self.length, self.append = name, size, length, append

    def prepare(self, where: Site) -> None:
        """The file, on both sides; nothing else."""
        for tree in (where.source, where.replica):
            for path in tree.iterdir():
                path.unlink()
        block = random.Random(1).randbytes(1 << 20)
        with (where.source / NAME).open("wb") as file:
            for at in range(0, self.size, len(block)):
                file.write(block[: self.size - at])
        subprocess.run(["cp", "-a", where.source / NAME, where.replica / NAME], check=True)
        subprocess.run(["sync"], check=True)

    def writes(self) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) without an end."""
        rng, at, number = random.Random(2), self.size, 0
        while True:
            number += 1
            data = STAMP.pack(number) + rng.randbytes(self.length - STAMP.size)
            if self.append:
                yield at, data
                at += len(data)
            else:
                yield rng.randrange(self.size // self.length) * self.length, data


SMALL_APPEND = Workload("append 512 bytes, small file", SMALL, 512, append=True)
LARGE_APPEND = Workload("append 512 bytes, 1 GiB file", LARGE, 512, append=True)
LARGE_RANDOM = Workload("overwrite 4 KiB, 1 GiB file", LARGE, 4096, append=False)
WORKLOADS = SMALL_APPEND, LARGE_APPEND, LARGE_RANDOM
LOADED = "append 512 bytes, while 4 GiB are replicated"


def sample(
    where: Site, writes: Iterator[tuple[int, bytes]], most: int, until: subprocess.Popen[bytes] | None = None
) -> list[float]:
    """Milliseconds of each write: so many, or (`until`) while that process runs; few if they are slow."""
    lags: list[float] = []
    watch = Watch(where.replica)
    fd = os.open(where.source / NAME, os.O_RDWR)
    begun = time.monotonic()
    try:
        for offset, data in writes:
            os.pwrite(fd, data, offset)
            returned = time.perf_counter()
            lags.append((watch.until(where.replica / NAME, offset, data) - returned) * 1000)
            late = time.monotonic() - begun > ENOUGH and len(lags) >= SLOW
            if until is not None and until.poll() is not None:
                break
            if until is None and (len(lags) >= most or late):
                break
            time.sleep(PAUSE)
    finally:
        os.close(fd)
        watch.close()
    return lags


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of all lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(lags: list[float]) -> dict[str, float]:
    """ms"""
    return {"p50": quantile(lags, 0.5), "p99": quantile(lags, 0.99), "max": max(lags), "writes": len(lags)}


def measure(where: Site, kind: type[Replicator], workload: Workload, most: int) -> dict[str, Any]:
    """One replicator, one workload; both sides are compared afterwards."""
    workload.prepare(where)
    with kind(where) as replicator:
        writes = workload.writes()
        sample(where, writes, 3)
        before, used = where.wire_bytes(), replicator.cpu()
        lags = sample(where, writes, most)
        figures: dict[str, Any] = summary(lags)
        if not isinstance(replicator, Bare):
            replicator.settle()
        figures["wire_bytes_per_write"] = (where.wire_bytes() - before) / len(lags)
        figures["cpu_ms_per_write"] = {
            end: (now - used[end]) * 1000 / len(lags) for end, now in replicator.cpu().items()
        }
        if isinstance(replicator, Rsyncfs):
            figures["durable"] = replicator.status()["lag_durable_ms"]
    if kind is not Bare:
        compared(where, *kind.keeps)
    return figures


@contextmanager
def load(where: Site) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes 4 GiB to another file, as fast as it can, and ends when the replica has all of it."""
    code = (
        "import os, sys, time\n"
        "block = os.urandom(1 << 20)\n"
        "with open(sys.argv[1], 'wb', buffering=0) as file:\n"
        f"    for _ in range({LOAD >> 20}): file.write(block)\n"
        "deadline = time.monotonic() + 300\n"
        "there = lambda: os.path.exists(sys.argv[2]) and os.stat(sys.argv[2]).st_size\n"
        f"while time.monotonic() < deadline and there() < {LOAD}:\n"
        "    time.sleep(0.05)\n"
    )
    words = [sys.executable, "-c", code, str(where.source / "load"), str(where.replica / "load")]
    process = subprocess.Popen(words)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def loaded(where: Site) -> dict[str, Any]:
    """Ours, while a big file is on its way."""
    SMALL_APPEND.prepare(where)
    with Rsyncfs(where) as replicator:
        with load(where) as process:
            lags = sample(where, SMALL_APPEND.writes(), 0, process)
        replicator.settle()
    compared(where)
    return summary(lags)


def rounds(where: Site, count: int, writes: int, peers: tuple[type[Replicator], ...]) -> dict[str, Any]:
    """All workloads: bare and ours in turn, peers once. By workload, then by replicator: medians."""
    result: dict[str, Any] = {}
    for workload in WORKLOADS:
        found: dict[str, list[dict[str, Any]]] = {}
        for _ in range(count):
            for kind in (Bare, Rsyncfs):
                found.setdefault(kind.name, []).append(measure(where, kind, workload, writes))
        for peer in peers:
            found[peer.name] = [measure(where, peer, workload, writes)]
        result[workload.name] = {name: middle(each) for name, each in found.items()}
    return result


def middle(runs: list[Any]) -> Any:
    """The median of each figure, object by object."""
    if isinstance(runs[0], dict):
        return {key: middle([run[key] for run in runs]) for key in runs[0]}
    return statistics.median(runs)


def tables(result: dict[str, Any]) -> list[Table]:
    table = Table("", "", "p50 ms", "p99 ms", "max ms", "durable p50 ms", "wire bytes", "CPU ms", "times bare", "p99")
    for workload, found in result["lags"].items():
        floor = found[Bare.name]
        for name, row in found.items():
            durable = row.get("durable")
            table.add_row(
                workload if name == Bare.name else "",
                name,
                *(f"{row[key]:.2f}" for key in ("p50", "p99", "max")),
                f"{durable['p50']:.1f}" if durable else "",
                f"{row['wire_bytes_per_write']:.0f}",
                ", ".join(f"{end} {used:.2f}" for end, used in row["cpu_ms_per_write"].items()),
                f"{row['p50'] / floor['p50']:.2f}",
                f"{row['p99'] / floor['p99']:.2f}",
            )
    if "loaded" in result:
        row, idle = result["loaded"], result["lags"][SMALL_APPEND.name][Rsyncfs.name]
        table.add_row(
            LOADED,
            Rsyncfs.name,
            *(f"{row[key]:.2f}" for key in ("p50", "p99", "max")),
            *[""] * 3,
            "times idle:",
            f"{row['p99'] / idle['p99']:.1f}",
        )
    return [table]


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, peers=True)
    parser.add_argument("--rounds", type=int, default=3, help="how often bare and ours take turns")
    parser.add_argument("--writes", type=int, default=WRITES, help="of each turn")
    parser.add_argument("--no-load", action="store_true", help="leave out the 4 GiB file")
    options = parsed(parser)
    peers = PEERS if options.peers else ()
    kinds: tuple[type[Replicator], ...] = (Bare, Rsyncfs, *peers)
    with site(options.directory, 8) as where:
        result: dict[str, Any] = {
            "settings": {kind.name: kind.settings for kind in kinds},
            "lags": rounds(where, options.rounds, options.writes, peers),
        }
        if not options.no_load:
            result["loaded"] = loaded(where)
    picture = Bars(
        "Lag of a small write until it is visible on the replica",
        "ms",
        {
            f"{workload}: {name}": {key: row[key] for key in ("p50", "p99")}
            for workload, found in result["lags"].items()
            for name, row in found.items()
        },
        log=True,
    )
    remarks = [f"{name}: {words}" for name, words in result["settings"].items() if options.peers]
    publish(Report("lag", result, tables(result), picture, remarks), options)


if __name__ == "__main__":
    main()

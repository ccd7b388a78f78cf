"""What a gap costs: a million files, some changed while nothing ran; found and replicated, against `rsync -a`.

Takes a directory with room for three sparse images (/var/tmp if none is given); prints a table or a JSON object. The
source, its replica and a copy for rsync lie on an ext4 each. A sender with its index, but without hooks, is started and
timed until it says "ready": everything that had changed is durable on the replica then. rsync gets the same changes, on
its own copy, and its usual best: the two directories on this host, no network. Each with nothing cached and with all of
it cached. Afterwards both copies are compared with the source.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
from report import Bars, Report, arguments, parsed, publish
from rich.table import Table
from volumes import EACH, FILES, Volume, make_files, run

from replicator import syscalls
from replicator.scan import scan
from replicator.tree.handles import SourceRoot

COMMAND = [sys.executable, "-m", "replicator"]
CHANGED, RENAMED, REMOVED = 100, 10, 10
ROUNDS = 3
"""Of each kind; the median counts."""
ADDRESS = "127.0.0.1:7419"
SETTLED = 8.0
"""Seconds that a sender lives on after it is in sync: what changed within the last five is compared once more."""


class Ends:
    """A receiver that stays, and senders that come and go."""

    def __init__(self, source: Path, replica: Path, state: Path) -> None:
        self._source, self._state = source, state
        self._receiver = self._start(
            "receive", "--root", replica, "--state", state / "receive", "--listen", ADDRESS, "--adopt"
        )

    def _start(self, *words: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen([*COMMAND, *map(str, words)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"rsyncfs {words[0]} ended with {process.wait()}")
        return process

    def catch_up(self) -> dict[str, Any]:
        """Start a sender and stop it when it is in sync: its seconds, bytes on the wire and memory (bytes)."""
        begun = time.monotonic()
        state = self._state / "send"
        sender = self._start("send", self._source, ADDRESS, "--state", state, "--detach-hooks")
        seconds = time.monotonic() - begun
        said = subprocess.run(
            [*COMMAND, "status", "--state", str(state), "--json"], check=True, capture_output=True, text=True
        )
        status = orjson.loads(said.stdout)
        resident = Path(f"/proc/{sender.pid}/status").read_text().partition("VmRSS:")[2].split()[0]
        time.sleep(SETTLED)
        sender.terminate()
        sender.wait()
        return {
            "seconds": seconds,
            "wire_bytes": sum(status["wire_bytes"].values()),
            "data_bytes": status["data_bytes"],
            "resident_bytes": int(resident) * 1024,
        }

    def close(self) -> None:
        self._receiver.terminate()
        self._receiver.wait()


def change(top: Path, rng: random.Random) -> None:
    """What happens while nothing runs."""
    directories = sorted(os.listdir(top))
    names = [(rng.choice(directories), f"{rng.randrange(EACH):04}") for _ in range(2 * (CHANGED + RENAMED + REMOVED))]
    there = [top / directory / name for directory, name in dict.fromkeys(names) if (top / directory / name).exists()]
    for path in there[:CHANGED]:
        path.write_bytes(rng.randbytes(100))
    for path in there[CHANGED : CHANGED + RENAMED]:
        path.rename(top / rng.choice(directories) / f"renamed-{rng.randrange(1 << 40)}")
    for path in there[CHANGED + RENAMED : CHANGED + RENAMED + REMOVED]:
        path.unlink()
    run("sync", "-f", top)


def cache(*points: Path) -> None:
    """Have all names and inodes in memory."""
    for point in points:
        run("find", point, "-printf", "%s%T@")


def forget() -> None:
    run("sync")
    Path("/proc/sys/vm/drop_caches").write_text("3")


def floor(point: Path) -> float:
    """Seconds of a bare scan of the inodes."""
    begun = time.monotonic()
    with SourceRoot.open(point) as source:
        syscalls.syncfs(source.read_fd)
        for _ in scan(source):
            pass
    return time.monotonic() - begun


def rsync(source: Path, copy: Path, *more: str) -> str:
    words = ["rsync", "-a", "--delete", *more, f"{source}/", f"{copy}/"]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def differences(source: Path, copy: Path) -> int:
    """How many things rsync would do. Directories' times are not compared: rsync's own copy has them right, too."""
    return len(rsync(source, copy, "-n", "-i", "-HAX").splitlines())


def measure(parent: Path, files: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="rsyncfs-bench-", dir=parent) as name:
        base = Path(name)
        volumes: list[Volume] = []
        try:
            for what in ("source", "replica", "copy"):
                (base / what).mkdir()
                volumes.append(Volume(base / what, files, volumes[0] if volumes else None))
                if what == "source":
                    (volumes[0].point / "tree").mkdir()
                    make_files(volumes[0].point / "tree", files)
            return _measured(base, *(made.point / "tree" for made in volumes))
        finally:
            for made in volumes:
                made.close()


def _measured(base: Path, source: Path, replica: Path, copy: Path) -> dict[str, Any]:
    rng = random.Random(1)
    ends = Ends(source, replica, base / "state")
    try:
        result: dict[str, Any] = {"first": ends.catch_up()}
        for kind in ("warm", "cold"):
            ours, theirs, bare = [], [], []
            for _ in range(ROUNDS):
                change(source, rng)
                cache(source, replica, copy) if kind == "warm" else forget()
                ours.append(ends.catch_up())
                cache(source, replica, copy) if kind == "warm" else forget()
                begun = time.monotonic()
                rsync(source, copy)
                theirs.append(time.monotonic() - begun)
                cache(source) if kind == "warm" else forget()
                bare.append(floor(source))
            middle = sorted(ours, key=lambda one: float(one["seconds"]))[len(ours) // 2]
            seconds = sorted(theirs)[len(theirs) // 2]
            result[kind] = {
                **middle,
                "rsync_seconds": seconds,
                "scan_seconds": sorted(bare)[len(bare) // 2],
                "times_faster": seconds / middle["seconds"],
            }
        result["differences"] = differences(source, replica)
        return result
    finally:
        ends.close()


def report(result: dict[str, Any], files: int) -> Report:
    """What is told of it."""
    table = Table("", "rsyncfs", "rsync -a", "times faster", "bare scan", "on the wire", "memory of the sender")
    for kind in ("warm", "cold"):
        row = result[kind]
        table.add_row(
            kind,
            f"{row['seconds']:.2f} s",
            f"{row['rsync_seconds']:.2f} s",
            f"{row['times_faster']:.1f}",
            f"{row['scan_seconds']:.2f} s",
            f"{row['wire_bytes'] / 1024:.0f} KiB",
            f"{row['resident_bytes'] / 2**20:.0f} MiB",
        )
    first = result["first"]
    remarks = [
        f"{files} files; {CHANGED} changed, {RENAMED} renamed, {REMOVED} removed; median of {ROUNDS}",
        f"the first sync, which compared {files} files that were there, took {first['seconds']:.0f} s; the sender had "
        f"{first['resident_bytes'] / 2**20:.0f} MiB then",
        f"differences afterwards: {result['differences']}",
    ]
    rows = {
        kind: {"rsyncfs": result[kind]["seconds"], "rsync -a": result[kind]["rsync_seconds"]}
        for kind in ("warm", "cold")
    }
    picture = Bars(f"{files:,} files after a gap, {CHANGED} changed", "s", rows, log=True)
    return Report("gap", {"files": files, **result}, [table], picture, remarks)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--files", type=int, default=FILES)
    options = parsed(parser)
    result = measure(options.directory, options.files)
    publish(report(result, options.files), options)
    if result["differences"]:
        sys.exit("the replica differs from the source")


if __name__ == "__main__":
    main()

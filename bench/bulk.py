"""One large file, written from its first byte to its last: how long until the replica has it durably, and at what cost.

Takes a directory with room for sparse images and twice the file (/var/tmp if none is given). A writer makes the file
while rsyncfs replicates it, clock started at the first byte and stopped when the last one is durable on the replica.
In turn, in the same run: `cp` of such a file, which is in memory, to the replica's disk, synced; and `rsync
--whole-file` through a daemon. Source and replica share a disk: rsyncfs has both copies written to it, cp and rsync
one. Processor time of both ends is by GiB. Then a second workload: 64 KiB written over at random, and what of that
travels.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from typing import Any

from ends import Rsyncfs, Site, compared, site
from peers import RsyncDaemon, rsync_to
from report import Bars, Report, arguments, parsed, publish
from rich.table import Table
from volumes import run

GIB = 1 << 30
PIECE = 64 << 10
PIECES = 2000

WRITER = """
import os, sys
block = os.urandom(1 << 20)
with open(sys.argv[1], 'wb', buffering=0) as file:
    for _ in range(int(sys.argv[2]) >> 20):
        file.write(block)
"""


def empty(where: Site) -> None:
    """Nothing on either side, and nothing that is still to be written to the disk."""
    for tree in (where.source, where.replica):
        for path in tree.iterdir():
            path.unlink()
    run("sync")


def write(path: str | os.PathLike[str], size: int) -> None:
    """Make a file by a process of its own."""
    subprocess.run([sys.executable, "-c", WRITER, path, str(size)], check=True)


def ours(where: Site, size: int) -> dict[str, float]:
    """Seconds until written, until durable, and of processors."""
    empty(where)
    with Rsyncfs(where) as replicator:
        used, begun = replicator.cpu(), time.monotonic()
        write(where.source / "file", size)
        written = time.monotonic() - begun
        replicator.settle()
        seconds = time.monotonic() - begun
        cpu = {end: now - used[end] for end, now in replicator.cpu().items()}
        memory = replicator.memory()
    compared(where)
    return {
        "seconds": seconds,
        "written_seconds": written,
        "sender_cpu_seconds_per_gib": cpu["sender"] * GIB / size,
        "receiver_cpu_seconds_per_gib": cpu["receiver"] * GIB / size,
        "cpu_seconds_per_gib": sum(cpu.values()) * GIB / size,
        "sender_peak_bytes": memory["sender"],
        "receiver_peak_bytes": memory["receiver"],
    }


def cp(where: Site, size: int) -> dict[str, float]:
    """A copy of a file that is there, and its sync; and how long it takes to write and sync such a file."""
    empty(where)
    begun = time.monotonic()
    write(where.source / "file", size)
    written = time.monotonic() - begun
    run("sync", "-f", where.source)
    made = time.monotonic() - begun
    begun, used = time.monotonic(), sum(os.times()[2:4])
    run("cp", where.source / "file", where.replica / "file")
    run("sync", "-f", where.replica)
    return {
        "seconds": time.monotonic() - begun,
        "cpu_seconds_per_gib": (sum(os.times()[2:4]) - used) * GIB / size,
        "written_seconds": written,
        "made_seconds": made,
    }


def rsync(where: Site, size: int) -> dict[str, float]:
    """The same copy by rsync."""
    empty(where)
    write(where.source / "file", size)
    run("sync", "-f", where.source)
    with RsyncDaemon(where) as daemon:
        used, begun = sum(os.times()[2:4]), time.monotonic()
        rsync_to(where, "--whole-file")
        sent = sum(os.times()[2:4]) - used
        received = sum(daemon.cpu().values())
        run("sync", "-f", where.replica)
        seconds = time.monotonic() - begun
    compared(where)
    return {"seconds": seconds, "cpu_seconds_per_gib": (sent + received) * GIB / size}


def pieces(where: Site) -> dict[str, float]:
    """64 KiB, written over at random in 1 GiB: bytes on the wire for each byte changed."""
    empty(where)
    write(where.source / "file", GIB)
    run("cp", "-a", where.source / "file", where.replica / "file")
    run("sync")
    rng = random.Random(3)
    places = rng.sample(range(GIB // PIECE), PIECES)
    with Rsyncfs(where) as replicator:
        before = where.wire_bytes()
        fd = os.open(where.source / "file", os.O_WRONLY)
        for place in places:
            os.pwrite(fd, rng.randbytes(PIECE), place * PIECE)
        os.close(fd)
        replicator.settle()
        travelled = where.wire_bytes() - before
    compared(where)
    return {"wire_bytes_per_byte": travelled / (PIECE * PIECES)}


def middle(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--gib", type=int, default=4, help="the size of the file")
    parser.add_argument("--rounds", type=int, default=3, help="how often all take turns")
    options = parsed(parser)
    size = options.gib * GIB
    runs: dict[str, list[dict[str, float]]] = {}
    with site(options.directory, options.gib + 1) as where:
        for _ in range(options.rounds):
            for name, measure in (("cp", cp), ("rsyncfs", ours), ("rsync --whole-file", rsync)):
                runs.setdefault(name, []).append(measure(where, size))
        changed = pieces(where)
    result: dict[str, Any] = {"gib": options.gib, "by": {name: middle(each) for name, each in runs.items()}, **changed}
    base = result["by"]["cp"]["seconds"]
    table = Table(f"{options.gib} GiB", "seconds", "times cp", "CPU s/GiB", "sender", "receiver")
    for name, row in result["by"].items():
        table.add_row(
            name,
            f"{row['seconds']:.2f}",
            f"{row['seconds'] / base:.2f}",
            f"{row['cpu_seconds_per_gib']:.2f}",
            *(
                f"{row[key]:.2f}" if key in row else ""
                for key in ("sender_cpu_seconds_per_gib", "receiver_cpu_seconds_per_gib")
            ),
        )
    row = result["by"]["cp"]
    remarks = [
        f"to write such a file took {row['written_seconds']:.2f} s, with its sync {row['made_seconds']:.2f} s",
        f"64 KiB written over at random: {changed['wire_bytes_per_byte']:.4f} bytes on the wire for each byte",
    ]
    picture = Bars(
        f"{options.gib} GiB, until durable on the replica",
        "s",
        {name: {"seconds": row["seconds"]} for name, row in result["by"].items()},
        target=1.25 * base,
    )
    publish(Report("bulk", result, [table], picture, remarks), options)


if __name__ == "__main__":
    main()

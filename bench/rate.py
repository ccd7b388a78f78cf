"""How many writes a second can go on and on: 4 KiB, at random in 1 GiB, by one process.

Source and replica are an ext4 each, whose images lie in memory (9 GiB): a disk that is too slow for the writer alone
would be all that is measured. At each rate the writer keeps to it for some time while both ends run here; what the
replica lags behind is looked at every second. A rate is sustained if the kernel dropped nothing, the writer kept to
it, and what is not durable on the replica does not grow: its median in the last third is not above that of the middle
third by more than a tenth, or than two seconds' worth of writes. The writer shares the processors with both ends.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

from ends import Rsyncfs, Site, compared, site
from report import Bars, Report, arguments, parsed, publish
from rich.table import Table
from volumes import memory, run

GIB = 1 << 30
PAGE = 4096
RATES = (10_000, 25_000, 50_000, 75_000, 100_000)

WRITER = """
import os, random, sys, time
path, rate, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
fd, rng = os.open(path, os.O_WRONLY), random.Random(4)
data = [rng.randbytes(4096) for _ in range(256)]
places = [rng.randrange(1 << 18) << 12 for _ in range(1 << 16)]
begun, number = time.monotonic(), 0
while (now := time.monotonic() - begun) < seconds:
    due = int(now * rate)
    if number >= due:
        time.sleep(0.0005)
        continue
    for number in range(number, min(due, number + 1000)):
        os.pwrite(fd, data[number & 255], places[number * 7919 & 65535] ^ (number >> 16 << 12 & 0x3FFFF000))
    number += 1
print(number / (time.monotonic() - begun))
"""


def measure(where: Site, rate: int, seconds: float) -> dict[str, Any]:
    """One rate."""
    for tree in (where.source, where.replica):
        for path in tree.iterdir():
            path.unlink()
    with (where.source / "file").open("wb") as file:
        for _ in range(GIB >> 20):
            file.write(bytes(1 << 20))
    run("cp", "-a", "--sparse=never", where.source / "file", where.replica / "file")
    run("sync")
    with Rsyncfs(where) as replicator:
        used = replicator.cpu()
        words = [sys.executable, "-c", WRITER, str(where.source / "file"), str(rate), str(seconds)]
        writer = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        backlog: list[float] = []
        lags: list[float] = []
        while writer.poll() is None:
            time.sleep(1)
            status = replicator.status()
            backlog.append(status["dirty_bytes"])
            lags.append(status["oldest_unreplicated_seconds"] or 0.0)
        assert writer.stdout is not None
        kept = float(writer.stdout.read())
        begun = time.monotonic()
        cpu = {end: (now - used[end]) / seconds for end, now in replicator.cpu().items()}
        replicator.settle()
        settled = time.monotonic() - begun
        losses = sum(replicator.status()["losses"].values())
        memory = replicator.memory()
    compared(where)
    third = len(backlog) // 3
    middle, last = statistics.median(backlog[third : 2 * third]), statistics.median(backlog[2 * third :])
    steady = last <= max(1.1 * middle, middle + 2 * rate * PAGE)
    return {
        "rate": rate,
        "kept": kept,
        "dropped": losses,
        "backlog_middle": middle,
        "backlog_last": last,
        "lag_seconds_p50": statistics.median(lags),
        "lag_seconds_max": max(lags),
        "processors": cpu,
        "peak_bytes": memory,
        "settled_seconds": settled,
        "sustained": steady and not losses and kept >= 0.98 * rate,
    }


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for each rate")
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, help="writes a second")
    options = parsed(parser)
    with memory(9 * GIB) as images, site(images, 2) as where:
        rows = [measure(where, rate, options.seconds) for rate in options.rates]
    table = Table("writes/s", "kept", "dropped", "MiB not durable", "lag s", "processors", "settled s", "sustained")
    for row in rows:
        table.add_row(
            f"{row['rate']:,}",
            f"{row['kept']:,.0f}",
            str(row["dropped"]),
            f"{row['backlog_middle'] / 2**20:.0f}, {row['backlog_last'] / 2**20:.0f}",
            f"{row['lag_seconds_p50']:.2f}, {row['lag_seconds_max']:.2f}",
            ", ".join(f"{end} {used:.2f}" for end, used in row["processors"].items()),
            f"{row['settled_seconds']:.1f}",
            "yes" if row["sustained"] else "no",
        )
    highest = max((row["rate"] for row in rows if row["sustained"]), default=0)
    picture = Bars(
        "Writes of 4 KiB at random in 1 GiB: what the replica lags behind",
        "s",
        {
            f"{row['rate']:,}/s{'' if row['sustained'] else ' (not sustained)'}": {"p50": row["lag_seconds_p50"]}
            for row in rows
        },
    )
    result = {"seconds": options.seconds, "rates": rows, "highest": highest}
    publish(Report("rate", result, [table], picture, [f"the highest that was sustained: {highest:,}/s"]), options)


if __name__ == "__main__":
    main()

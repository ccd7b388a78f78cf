"""How fast all inodes of an ext4 are found on this machine: from its tables, by a walk, and by find(1) as a floor.

Takes a directory with room for a sparse image (/var/tmp if none is given); prints a table or a JSON object. Each way is
measured with nothing cached and with everything cached. It does not promise that a disk below a virtual machine has
forgotten what was read before.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import Bars, Report, arguments, parsed, publish
from rich.table import Table
from volumes import FILES, Volume, make_files, volume

from replicator import syscalls
from replicator.scan import scan
from replicator.tree.handles import SourceRoot

WARM = 3
"""Runs with everything cached, of which the fastest counts."""
WAYS = {"tables": "inode tables", "walk": "walk", "find": "find -printf"}


def rows(point: Path, how: str) -> int:
    with SourceRoot.open(point) as source:
        syscalls.syncfs(source.read_fd)
        return sum(len(batch) for batch in scan(source, how))


def lines(point: Path) -> int:
    done = subprocess.run(
        ["find", point, "-printf", "%i %m %n %s %C@ %T@\n"], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.count("\n")


def measure(made: Volume) -> dict[str, Any]:
    """Seconds of each way, and how many inodes it found."""
    ways: dict[str, Callable[[], int]] = {
        "tables": lambda: rows(made.point, "auto"),
        "walk": lambda: rows(made.point, "walk"),
        "find": lambda: lines(made.point),
    }
    result: dict[str, Any] = {}
    for way, look in ways.items():
        made.forget()
        times: list[tuple[float, float]] = []
        for _ in range(1 + WARM):
            begun, used = time.monotonic(), sum(os.times()[:4])
            result[f"{way}_inodes"] = look()
            times.append((time.monotonic() - begun, sum(os.times()[:4]) - used))
        result[f"{way}_cold_seconds"], result[f"{way}_cold_cpu_seconds"] = times[0]
        result[f"{way}_warm_seconds"], result[f"{way}_warm_cpu_seconds"] = min(times[1:])
    return result


def report(result: dict[str, Any]) -> Report:
    """What is told of it."""
    table = Table("", "inodes", "nothing cached", "processor", "all cached", "processor")
    for way, words in WAYS.items():
        table.add_row(
            words,
            str(result[f"{way}_inodes"]),
            *(
                f"{result[f'{way}_{cached}_{what}']:.2f} s"
                for cached in ("cold", "warm")
                for what in ("seconds", "cpu_seconds")
            ),
        )
    rows = {
        words: {cached: result[f"{way}_{cached}_seconds"] for cached in ("cold", "warm")} for way, words in WAYS.items()
    }
    return Report("scan", result, [table], Bars(f"All inodes of {result['files']:,} files", "s", rows))


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--files", type=int, default=FILES, metavar="N", help="how many small files there are")
    options = parsed(parser)
    result: dict[str, Any] = {"files": options.files}
    with volume(options.directory, options.files) as made:
        result["creation_seconds"] = make_files(made.point, options.files)
        result |= measure(made)
    publish(report(result), options)


if __name__ == "__main__":
    main()

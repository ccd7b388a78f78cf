"""What both ends cost when nothing happens in a tree of very many files: processor time and memory.

Takes a directory with room for two sparse images (/var/tmp if none is given), each an ext4 with as many small files.
They are compared once, which takes minutes for a million; then, after a rest, processor time is read before and after
some time in which nobody touches the tree. Memory is what is resident then, and the most that it ever was.
"""

from __future__ import annotations

import time
from typing import Any

from ends import Rsyncfs, compared, resident, site
from report import Bars, Report, arguments, parsed, publish
from rich.table import Table
from volumes import FILES, make_files, run

REST = 15.0


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--seconds", type=float, default=60)
    options = parsed(parser)
    with site(options.directory, 1, options.files) as where:
        make_files(where.source, options.files)
        run("cp", "-a", f"{where.source}/.", where.replica)
        run("sync")
        with Rsyncfs(where) as replicator:
            replicator.settle()
            time.sleep(REST)
            before, begun = replicator.cpu(), time.monotonic()
            time.sleep(options.seconds)
            seconds = time.monotonic() - begun
            used = {end: 100 * (now - before[end]) / seconds for end, now in replicator.cpu().items()}
            ends: dict[str, Any] = {
                end: {
                    "cpu_percent": used[end],
                    "resident_bytes": resident(replicator.processes[end].pid),
                    "peak_bytes": replicator.memory()[end],
                }
                for end in used
            }
        compared(where)
    table = Table(f"{options.files:,} files, idle", "% of a processor", "resident MiB", "most MiB")
    for end, row in ends.items():
        memory = (f"{row[key] / 2**20:.0f}" for key in ("resident_bytes", "peak_bytes"))
        table.add_row(end, f"{row['cpu_percent']:.2f}", *memory)
    rows = {
        end: {"resident": row["resident_bytes"] / 2**20, "most": row["peak_bytes"] / 2**20} for end, row in ends.items()
    }
    picture = Bars(f"{options.files:,} files, idle", "MiB", rows, target=150)
    publish(Report("idle", {"files": options.files, "ends": ends}, [table], picture), options)


if __name__ == "__main__":
    main()

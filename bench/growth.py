"""How lag, wire and memory grow with the number of files and with the size of the file that changes.

Takes a directory with room for sparse images (/var/tmp if none is given). For each size of a tree, or of a file, both
sides have it before anything starts; then 512 bytes at a time are appended. A flat line is what is wanted: nothing of a
change may depend on what did not change.
"""

from __future__ import annotations

from typing import Any

from bare import NAME
from ends import Rsyncfs, Site, compared, resident, site
from lag import Workload, sample, summary
from report import Lines, Report, arguments, parsed, publish
from rich.table import Table
from volumes import make_files, run

WRITES = 200
COUNTS = (10**3, 10**4, 10**5, 10**6)
SIZES = (1 << 20, 1 << 24, 1 << 28, 1 << 30, 10 << 30)


def measured(where: Site, workload: Workload) -> dict[str, Any]:
    """Lags, bytes and memory of some appended lines."""
    with Rsyncfs(where) as replicator:
        replicator.settle()
        writes = workload.writes()
        sample(where, writes, 5)
        wire = where.wire_bytes()
        found: dict[str, Any] = summary(sample(where, writes, WRITES))
        replicator.settle()
        found["wire_bytes_per_write"] = (where.wire_bytes() - wire) / WRITES
        for end, process in replicator.processes.items():
            found[f"{end}_bytes"] = resident(process.pid)
    compared(where)
    return found


def of_files(options: Any, count: int) -> dict[str, Any]:
    """In a tree of so many small files."""
    workload = Workload("", 64 << 10, 512, append=True)
    with site(options.directory, 1, count) as where:
        workload.prepare(where)
        make_files(where.source, count)
        run("cp", "-a", f"{where.source}/.", where.replica)
        run("sync")
        return measured(where, workload)


def of_size(options: Any, size: int) -> dict[str, Any]:
    """In a file of that size."""
    workload = Workload("", size, 512, append=True)
    with site(options.directory, 2 + (size >> 30), 1000) as where:
        workload.prepare(where)
        return measured(where, workload)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--most-files", type=int, default=COUNTS[-1], help="leave out larger trees")
    parser.add_argument("--most-bytes", type=int, default=SIZES[-1], help="leave out larger files")
    options = parsed(parser)
    counts = {count: of_files(options, count) for count in COUNTS if count <= options.most_files}
    sizes = {size: of_size(options, size) for size in SIZES if size <= options.most_bytes}
    result = {"file": NAME, "files": counts, "bytes": sizes}
    tables = []
    for what, rows in (("files in the tree", counts), ("bytes in the file", sizes)):
        table = Table(what, "lag p50 ms", "p99", "wire bytes", "sender MiB", "receiver MiB")
        for size, row in rows.items():
            memory = (f"{row[f'{end}_bytes'] / 2**20:.0f}" for end in ("sender", "receiver"))
            table.add_row(
                f"{size:,}", f"{row['p50']:.2f}", f"{row['p99']:.2f}", f"{row['wire_bytes_per_write']:.0f}", *memory
            )
        tables.append(table)
    lines = {
        "lag p50, ms, by files": {float(size): row["p50"] for size, row in counts.items()},
        "sender's memory, MiB, by files": {float(size): row["sender_bytes"] / 2**20 for size, row in counts.items()},
        "lag p50, ms, by bytes": {float(size): row["p50"] for size, row in sizes.items()},
    }
    picture = Lines("A line appended, in ever more files and ever larger ones", "files, or bytes", "ms, MiB", lines)
    publish(Report("growth", result, tables, picture), options)


if __name__ == "__main__":
    main()

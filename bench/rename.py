"""What the rename of a large directory costs: until it is visible on the replica, and on the wire.

Takes a directory with room for sparse images (/var/tmp if none is given). The directory has many small files, which are
on both sides before anything starts; it is renamed some times, once everything is told and at rest. rsync gets one such
rename, through a daemon: it knows nothing of renames and sends all again.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from ends import Rsyncfs, Site, compared, site
from lag import Watch
from peers import RsyncDaemon, rsync_to
from report import Bars, Report, arguments, parsed, publish
from rich.table import Table
from volumes import fill, run

RENAMES = 7
WAIT = 600.0


def prepare(where: Site, files: int) -> None:
    """One directory with so many files, on both sides."""
    top = where.source / "directory-0"
    top.mkdir()
    fill(top, files, 0, 1)
    run("cp", "-a", top, where.replica)
    run("sync")


def ours(where: Site) -> dict[str, Any]:
    """Milliseconds and bytes of each rename."""
    lags, wire = [], []
    with Rsyncfs(where) as replicator:
        replicator.settle()
        deadline = time.monotonic() + WAIT
        while replicator.status()["unsettled_files"]:
            if time.monotonic() > deadline:
                raise SystemExit("the sender does not come to rest")
            time.sleep(0.2)
        watch = Watch(where.replica)
        for number in range(RENAMES):
            before = where.wire_bytes()
            target = f"directory-{number + 1}"
            (where.source / f"directory-{number}").rename(where.source / target)
            returned = time.perf_counter()
            lags.append((watch.exists(where.replica / target) - returned) * 1000)
            replicator.settle()
            wire.append(where.wire_bytes() - before)
        watch.close()
    compared(where)
    return {
        "milliseconds": statistics.median(lags),
        "most_milliseconds": max(lags),
        "wire_bytes": statistics.median(wire),
    }


def rsync(where: Site) -> dict[str, Any]:
    """The same of one run of rsync."""
    with RsyncDaemon(where):
        rsync_to(where)
        (where.source / f"directory-{RENAMES}").rename(where.source / "directory-x")
        before, begun = where.wire_bytes(), time.monotonic()
        rsync_to(where)
        found = {"milliseconds": (time.monotonic() - begun) * 1000, "wire_bytes": where.wire_bytes() - before}
    compared(where)
    return found


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--files", type=int, default=100_000, help="in the directory")
    options = parsed(parser)
    with site(options.directory, 1, 2 * options.files) as where:
        prepare(where, options.files)
        result: dict[str, Any] = {"files": options.files, "rsyncfs": ours(where), "rsync": rsync(where)}
    table = Table(f"a directory of {options.files:,} files renamed", "ms", "bytes on the wire")
    for name in ("rsyncfs", "rsync"):
        table.add_row(name, f"{result[name]['milliseconds']:,.1f}", f"{result[name]['wire_bytes']:,.0f}")
    rows = {
        name: {"ms": result[name]["milliseconds"], "bytes": result[name]["wire_bytes"]} for name in ("rsyncfs", "rsync")
    }
    picture = Bars("Rename of a large directory", "ms, bytes", rows, log=True)
    remarks = [f"the slowest of {RENAMES}: {result['rsyncfs']['most_milliseconds']:.1f} ms"]
    publish(Report("rename", result, [table], picture, remarks), options)


if __name__ == "__main__":
    main()

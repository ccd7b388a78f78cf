"""The first sync of a tree of many small files: from the start of the sender until all is durable on an empty replica.

Takes a directory with room for sparse images (/var/tmp if none is given). Files have 100 to 4000 bytes, a thousand in
a directory. In turn, with the source's names, inodes and bytes in memory: rsyncfs, `rsync -a` through a daemon with a
sync afterwards, and the bare system calls that both cannot do without (open, fstat, read, close; create, write, chown,
chmod, utimens, close), by one process. Both replicas are compared with the source.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

from ends import Rsyncfs, Site, compared, site
from peers import RsyncDaemon, rsync_to
from report import Bars, Report, arguments, parsed, publish
from rich.table import Table
from volumes import EACH, run


def make(top: Path, files: int) -> None:
    """The tree."""
    rng = random.Random(5)
    content = rng.randbytes(8000)
    for number in range(files):
        directory = top / f"{number // EACH:05}"
        if not number % EACH:
            directory.mkdir()
        start = rng.randrange(4000)
        (directory / f"{number % EACH:04}").write_bytes(content[start : start + rng.randrange(100, 4000)])
    run("sync")


def fresh(where: Site) -> None:
    """An empty replica; the source's bytes are in memory."""
    for path in where.replica.iterdir():
        shutil.rmtree(path)
    run("sync")
    run("tar", "-cf", "/dev/null", "-C", where.source, ".")
    run("grep", "-rcq", "no such bytes", where.source, check=False)


def ours(where: Site) -> dict[str, Any]:
    """Until `ready`."""
    fresh(where)
    wire = where.wire_bytes()
    with Rsyncfs(where) as replicator:
        seconds = replicator.ready_seconds
        found = {
            "seconds": seconds,
            "cpu_seconds": replicator.cpu(),
            "peak_bytes": replicator.memory(),
            "wire_bytes": where.wire_bytes() - wire,
        }
        replicator.settle()
    compared(where)
    return found


def rsync(where: Site) -> dict[str, Any]:
    """Until rsync has ended, and a sync after it."""
    fresh(where)
    with RsyncDaemon(where) as daemon:
        wire, used, begun = where.wire_bytes(), sum(os.times()[2:4]), time.monotonic()
        rsync_to(where)
        run("sync", "-f", where.replica)
        seconds = time.monotonic() - begun
        cpu = {"sender": sum(os.times()[2:4]) - used, **daemon.cpu()}
        travelled = where.wire_bytes() - wire
    compared(where)
    return {"seconds": seconds, "cpu_seconds": cpu, "wire_bytes": travelled}


def floor(where: Site) -> dict[str, float]:
    """The bare system calls, in one process: seconds to read, and to make, all files."""
    fresh(where)
    paths = [Path(directory, name) for directory, _, names in os.walk(where.source) for name in names]
    begun = time.monotonic()
    held = []
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        status = os.fstat(fd)
        held.append((path.relative_to(where.source), status, os.read(fd, 1 << 16)))
        os.close(fd)
    read = time.monotonic() - begun
    for directory in {path.parent for path, _, _ in held}:
        (where.replica / directory).mkdir()
    begun = time.monotonic()
    for path, status, data in held:
        fd = os.open(where.replica / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, data)
        os.fchown(fd, status.st_uid, status.st_gid)
        os.fchmod(fd, status.st_mode & 0o7777)
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.close(fd)
    run("sync", "-f", where.replica)
    return {"read_seconds": read, "create_seconds": time.monotonic() - begun}


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, peers=True)
    parser.add_argument("--files", type=int, default=500_000)
    options = parsed(parser)
    with site(options.directory, 4, options.files) as where:
        make(where.source, options.files)
        result: dict[str, Any] = {
            "files": options.files,
            "floor": floor(where),
            "rsync": rsync(where),
            "rsyncfs": ours(where),
        }
    bare = sum(result["floor"].values())
    table = Table(f"{options.files:,} files", "seconds", "µs a file", "rsync / it", "CPU s", "MB on the wire")
    table.add_row("bare calls, one after the other", f"{bare:.1f}", f"{bare * 1e6 / options.files:.0f}", "", "", "")
    for name in ("rsync", "rsyncfs"):
        row = result[name]
        table.add_row(
            name,
            f"{row['seconds']:.1f}",
            f"{row['seconds'] * 1e6 / options.files:.0f}",
            f"{result['rsync']['seconds'] / row['seconds']:.2f}",
            ", ".join(f"{end} {used:.1f}" for end, used in row["cpu_seconds"].items()),
            f"{row['wire_bytes'] / 1e6:.1f}",
        )
    rows = {name: {"s": result[name]["seconds"]} for name in ("rsync", "rsyncfs")} | {"bare calls": {"s": bare}}
    picture = Bars(f"First sync of {options.files:,} small files", "s", rows, target=result["rsync"]["seconds"])
    publish(Report("initial", result, [table], picture), options)


if __name__ == "__main__":
    main()

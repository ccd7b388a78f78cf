"""Work as people do it, while somebody replicates: a database, ten thousand new files, an archive unpacked.

Takes a directory with room for sparse images (/var/tmp if none is given). Each piece of work is done with nobody
there, with rsyncfs, and with --peers beside other replicators, in turn. Told are how long the work itself takes (what
replication costs whoever works), how long until the replica is the same (for rsyncfs: until all is durable), bytes on
the wire, and processor time. How soon others are done is looked at by comparing both trees over and over, which takes
part of a processor. A database that is in use is copied torn by all of them; it is compared when it rests.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ends import Replicator, Rsyncfs, Site, compared, site
from peers import PEERS
from report import Bars, Report, arguments, parsed, publish
from rich.table import Table
from volumes import run

TRANSACTIONS = 2000
FILES = 10_000

SQLITE = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, text TEXT)")
for number in range(int(sys.argv[2])):
    db.execute("INSERT INTO t (text) VALUES (?)", (f"{number} " * 40,))
    if number % 4 == 3:
        db.execute("UPDATE t SET text = ? WHERE id = ?", ("changed", 1 + number // 2))
db.close()
"""

CREATES = """
import os, sys
for number in range(int(sys.argv[2])):
    directory = os.path.join(sys.argv[1], str(number // 1000))
    if not number % 1000:
        os.mkdir(directory)
    with open(os.path.join(directory, str(number)), "wb") as file:
        file.write(b"x" * 1000)
"""


def python(code: str, *words: object) -> None:
    """Run it in a process of its own."""
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True)


def works(archive: Path) -> dict[str, Callable[[Path], None]]:
    """By name: what is done in a directory."""
    return {
        f"sqlite, WAL, {TRANSACTIONS} transactions": lambda top: python(SQLITE, top / "db", TRANSACTIONS),
        f"{FILES:,} files made": lambda top: python(CREATES, top, FILES),
        "tar x": lambda top: run("tar", "-xf", archive, "-C", top),
    }


def empty(where: Site) -> None:
    """Nothing on either side."""
    for tree in (where.source, where.replica):
        for path in tree.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run("sync")


def measure(where: Site, kind: type[Replicator] | None, work: Callable[[Path], None]) -> dict[str, Any]:
    """One piece of work; with nobody there if `kind` is None."""
    empty(where)
    if kind is None:
        begun = time.monotonic()
        work(where.source)
        return {"work_seconds": time.monotonic() - begun}
    with kind(where) as replicator:
        wire, used, begun = where.wire_bytes(), replicator.cpu(), time.monotonic()
        work(where.source)
        worked = time.monotonic() - begun
        replicator.settle()
        found = {
            "work_seconds": worked,
            "seconds": time.monotonic() - begun,
            "wire_bytes": where.wire_bytes() - wire,
            "cpu_seconds": {end: now - used.get(end, 0.0) for end, now in replicator.cpu().items()},
        }
    compared(where, *kind.keeps)
    return found


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, peers=True)
    options = parsed(parser)
    kinds: list[type[Replicator] | None] = [None, Rsyncfs, *(PEERS if options.peers else ())]
    result: dict[str, Any] = {}
    with site(options.directory, 2) as where:
        archive = where.base / "archive.tar"
        run("tar", "-cf", archive, "-C", sysconfig.get_path("stdlib"), "--exclude=__pycache__", ".")
        for name, work in works(archive).items():
            result[name] = {kind.name if kind else "nobody": measure(where, kind, work) for kind in kinds}
    table = Table("", "", "work s", "times alone", "until the same s", "MB on the wire", "CPU s")
    for name, found in result.items():
        alone = found["nobody"]["work_seconds"]
        for who, row in found.items():
            more: tuple[str, ...] = ()
            if who != "nobody":
                more = (
                    f"{row['seconds']:.2f}",
                    f"{row['wire_bytes'] / 1e6:.2f}",
                    ", ".join(f"{end} {used:.2f}" for end, used in row["cpu_seconds"].items()),
                )
            first = name if who == "nobody" else ""
            table.add_row(first, who, f"{row['work_seconds']:.2f}", f"{row['work_seconds'] / alone:.2f}", *more)
    rows = {
        f"{name}: {who}": {"s": row["seconds"]}
        for name, found in result.items()
        for who, row in found.items()
        if who != "nobody"
    }
    publish(
        Report("work", result, [table], Bars("From the work's begin until the replica is the same", "s", rows)), options
    )


if __name__ == "__main__":
    main()

"""`python -m tests.soak.overflow`: more small writes than the kernel's ring holds, and a replica that is right.

Takes counts and, once `rsyncfs send` has them, the sizes of the ring and of the map of lost inodes; four processes
write to thousands of files as fast as they can. Prints what could not be handed over, by cause, and what that cost;
exit code 1 if the replica differs. Root.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.soak.crashes import PATIENCE
from tests.support.filesystems import filesystem
from tests.support.oracle import differences
from tests.support.pair import Pair

TOLD = ("rsyncfs_events_", "rsyncfs_resyncs_", "rsyncfs_data_bytes_", "rsyncfs_needs_", "rsyncfs_lost_")
"""What the sender's metrics say of losses begins so."""
ROOM = 16_384
"""No write reaches further."""


def _write(top: Path, numbers: range, writes: int, seed: int) -> None:
    dice = Random(seed)
    files = [os.open(top / f"{number % 100}" / str(number), os.O_WRONLY | os.O_CREAT, 0o644) for number in numbers]
    for turn in range(writes):
        os.pwrite(dice.choice(files), b"%016x" % (turn * 4 + seed), dice.randrange(ROOM))


def storm(top: Path, files: int, writes: int, processes: int) -> None:
    """All processes write to all files; returns when they are done."""
    for number in range(100):
        (top / str(number)).mkdir(exist_ok=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files + 100, files + 100))
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_write, args=(top, range(files), writes // processes, number))
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0, f"a writer ended with {worker.exitcode}"


def overflow(fstype: str, directory: Path, files: int, writes: int, options: Sequence[str] = ()) -> dict[str, Any]:
    """One storm on new filesystems below `directory`; the figures. AssertionError if a process fails."""
    with filesystem(fstype, directory / "source") as source, filesystem(fstype, directory / "replica") as replica:
        for place in (source / "root", replica / "root", directory / "state"):
            place.mkdir()
        with Pair(source / "root", replica / "root", directory / "state", send_options=options) as pair:
            began = time.monotonic()
            storm(source / "root", files, writes, 4)
            written = time.monotonic() - began
            pair.wait(5 * PATIENCE)
            seconds = time.monotonic() - began
            figures = {name: value for name, value in pair.metrics().items() if name.startswith(TOLD) and value}
            return {
                "filesystem": fstype,
                "files": files,
                "writes": writes,
                "options": list(options),
                "seconds_written": written,
                "seconds_durable": seconds,
                "losses": pair.status()["losses"],
                "metrics": figures,
                "differences": differences(source / "root", replica / "root"),
            }


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.overflow", description=__doc__)
    parser.add_argument("--filesystem", default="ext4")
    parser.add_argument("--files", type=int, default=5_000)
    parser.add_argument("--writes", type=int, default=2_000_000)
    parser.add_argument("--ring-bytes", type=int, help="of the sender's ring; its own choice if not given")
    parser.add_argument("--lost-inodes", type=int, help="that the sender's map holds")
    words = parser.parse_args()
    options = [
        word
        for name, value in (("--ring-bytes", words.ring_bytes), ("--lost-inodes", words.lost_inodes))
        if value is not None
        for word in (name, str(value))
    ]
    with tempfile.TemporaryDirectory(prefix="rsyncfs-overflow-", dir="/var/tmp") as place:
        found = overflow(words.filesystem, Path(place), words.files, words.writes, options)
    print(json.dumps(found, indent=2))
    return 1 if found["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())

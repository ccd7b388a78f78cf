"""`python -m tests.soak.overflow`: more small writes than the kernel can hand over, and a replica that is right.

Takes counts and the sizes of the ring and of the map of lost inodes; four processes write to thousands of files as fast
as they can, beside thousands that nobody writes to. Prints what could not be handed over, by cause, in which of three
tiers that was made up for, and what it cost: with all that was told, with the files that are known to have lost
something, or with a survey of all inodes. Exit code 1 if the replica differs, if a file was read that was not written
to, or if the tier is not the one that `--tier` wants. Root.
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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from replicator.tree.stamps import Differences
from replicator.tree.store import IndexStore
from tests.soak.crashes import PATIENCE
from tests.support.deadline import eventually
from tests.support.filesystems import filesystem
from tests.support.oracle import differences
from tests.support.pair import Pair
from tests.support.readwatch import ReadWatch

TOLD = ("rsyncfs_events_", "rsyncfs_resyncs_", "rsyncfs_data_bytes_", "rsyncfs_needs_", "rsyncfs_lost_")
"""What the sender's metrics say of losses begins so."""
DROPPED = "rsyncfs_events_dropped_total"
RESYNC = 'rsyncfs_resyncs_total{cause="events_lost"}'
ROOM = 16_384
"""No write reaches further."""
SIZE = 16 << 30
"""Bytes of a filesystem: btrfs has writers wait for one another when a small one may become full."""
DIRECTORIES = 100
SIZES = {1: (), 2: ("--ring-bytes", "4096"), 3: ("--ring-bytes", "4096", "--lost-inodes", "64")}
"""What forces each tier, of a storm that is long enough: a ring of one page; and a map that holds few of the files."""


@dataclass(frozen=True)
class Storm:
    """How much is written."""

    files: int = 5_000
    writes: int = 2_000_000
    quiet: int = 2_000
    """Files beside those, to which nobody writes."""
    processes: int = 4


def _write(top: Path, numbers: range, writes: int, seed: int) -> None:
    dice = Random(seed)
    most = max(len(numbers) + len(os.listdir("/proc/self/fd")) + 100, *resource.getrlimit(resource.RLIMIT_NOFILE))
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    files = [os.open(_busy(top, number), os.O_WRONLY | os.O_CREAT, 0o644) for number in numbers]
    for turn in range(writes):
        os.pwrite(dice.choice(files), b"%016x" % (turn * 4 + seed), dice.randrange(ROOM))


def _busy(top: Path, number: int) -> Path:
    return top / f"{number % DIRECTORIES}" / str(number)


def prepare(top: Path, storm: Storm) -> list[Path]:
    """Make the files to which nobody will write, and the directories for all; gives those files."""
    for number in range(DIRECTORIES):
        (top / str(number)).mkdir(exist_ok=True)
    quiet = [top / f"{number % DIRECTORIES}" / f"quiet{number}" for number in range(storm.quiet)]
    for path in quiet:
        path.write_bytes(os.urandom(3000))
    return quiet


def rage(top: Path, storm: Storm) -> None:
    """All processes write to all files; returns when they are done."""
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_write, args=(top, range(storm.files), storm.writes // storm.processes, number))
        for number in range(storm.processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0, f"a writer ended with {worker.exitcode}"


def tier(metrics: dict[str, float]) -> int:
    """Which one was used, as the sender's metrics show it: 1 all was told, 2 the files are known, 3 a survey."""
    if metrics.get(RESYNC):
        return 3
    return 2 if any(value for name, value in metrics.items() if name.startswith(DROPPED)) else 1


def vouched_for(state: Path, inodes: int) -> bool:
    """Whether the sender's index has so many inodes and vouches for them: a survey reads what changes from now on."""
    store = IndexStore(state / "index.sqlite")
    try:
        if store.count < inodes:
            return False
        return not any(Differences(store.stamps(root)).unsure() for root in store.roots())
    finally:
        store.close()


def overflow(fstype: str, directory: Path, storm: Storm, options: Sequence[str] = ()) -> dict[str, Any]:
    """One storm on new filesystems below `directory`; the figures. AssertionError if a process fails."""
    with (
        filesystem(fstype, directory / "source", SIZE) as source,
        filesystem(fstype, directory / "replica", SIZE) as replica,
    ):
        for place in (source / "root", replica / "root", directory / "state"):
            place.mkdir()
        quiet = prepare(source / "root", storm)
        with Pair(source / "root", replica / "root", directory / "state", send_options=options) as pair:
            pair.wait(PATIENCE)
            if "--lost-inodes" in options:
                eventually(partial(vouched_for, pair.send_state, len(quiet) + DIRECTORIES), 60.0, every=0.2)
            with ReadWatch(quiet) as watch:
                began = time.monotonic()
                rage(source / "root", storm)
                written = time.monotonic() - began
                pair.wait(5 * PATIENCE)
                seconds = time.monotonic() - began
                read = len(watch.read())
                quiet[0].read_bytes()
                assert watch.read(), "a read was not seen"
            samples = {name: value for name, value in pair.metrics().items() if name.startswith(TOLD) and value}
            return {
                "filesystem": fstype,
                "files": storm.files,
                "writes": storm.writes,
                "options": list(options),
                "seconds_written": written,
                "seconds_durable": seconds,
                "losses": pair.status()["losses"],
                "tier": tier(samples),
                "metrics": samples,
                "quiet_files": len(quiet),
                "quiet_files_read": read,
                "differences": differences(source / "root", replica / "root"),
            }


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.overflow", description=__doc__)
    parser.add_argument("--filesystem", default="ext4")
    parser.add_argument("--files", type=int, default=Storm.files)
    parser.add_argument("--writes", type=int, default=Storm.writes)
    parser.add_argument("--quiet", type=int, default=Storm.quiet, help="files beside those that nobody writes to")
    parser.add_argument("--tier", type=int, choices=SIZES, help="make ring and map so small that it is this one")
    parser.add_argument("--ring-bytes", type=int, help="of the sender's ring; its own choice if not given")
    parser.add_argument("--lost-inodes", type=int, help="that the sender's map holds")
    words = parser.parse_args()
    options = list(SIZES.get(words.tier, ()))
    for name, value in (("--ring-bytes", words.ring_bytes), ("--lost-inodes", words.lost_inodes)):
        if value is not None:
            options += (name, str(value))
    with tempfile.TemporaryDirectory(prefix="rsyncfs-overflow-", dir="/var/tmp") as place:
        storm = Storm(words.files, words.writes, words.quiet)
        found = overflow(words.filesystem, Path(place), storm, options)
    print(json.dumps(found, indent=2))
    right = not found["differences"] and not found["quiet_files_read"] and words.tier in (None, found["tier"])
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())

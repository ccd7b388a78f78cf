"""`python -m tests.soak`: the full counts of crashes, spread over filesystems, within a limit of time.

Prints a table and, with --json, writes the figures. Exit code 1 if a replica differed, an acknowledgement was broken, a
process ended by itself, or the time did not suffice; what failed is printed with the command that repeats it. Root.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from tests.soak.crashes import KINDS, Crashes, Result, campaign
from tests.soak.power import power_cuts
from tests.soak.report import repeat, summary, table

FULL = {"sender": 200, "receiver": 200, "both": 50, "cut": 500}
WHERE = ("ext4", "xfs", "btrfs", "ext4-to-xfs")
POWER = ("ext4", "xfs", "btrfs")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    for kind in KINDS:
        parser.add_argument(
            f"--{kind}", type=int, default=FULL[kind], help="crashes of this kind, over all filesystems"
        )
    parser.add_argument(
        "--power", type=int, default=20, help=f"power cuts of the receiver, on each of {', '.join(POWER)}"
    )
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="of the first filesystem; then one more each"
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--only", choices=WHERE, nargs="+", default=WHERE, metavar="FILESYSTEM")
    parser.add_argument("--rescans", type=int, default=0, help="surveys or walks that are allowed after the first scan")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


Campaign = Callable[[Path, float], Result]


def shares(total: Crashes, parts: int) -> list[Crashes]:
    """What each filesystem gets: the counts add up, the seeds differ."""
    found = []
    for number in range(parts):
        counts = {kind: (getattr(total, kind) + parts - 1 - number) // parts for kind in KINDS}
        found.append(replace(total, **counts, seed=total.seed + number))
    return found


def main() -> int:
    """Do what the command line says."""
    words = arguments().parse_args()
    if os.geteuid() != 0:
        print("the soak needs root (BPF, loop devices, owners): run it with sudo", file=sys.stderr)
        return 3
    stop_at = time.monotonic() + words.minutes * 60
    total = Crashes(**{kind: getattr(words, kind) for kind in KINDS}, seed=words.seed, rescans=words.rescans)
    results: list[Result] = []
    campaigns: list[Campaign] = [
        partial(campaign, crashes, where)
        for where, crashes in zip(words.only, shares(total, len(words.only)), strict=True)
        if any(getattr(crashes, kind) for kind in KINDS)
    ]
    if words.power:
        campaigns += [partial(power_cuts, where, words.power, words.seed) for where in POWER if where in words.only]
    for number, run in enumerate(campaigns):
        left = stop_at - time.monotonic()
        with tempfile.TemporaryDirectory(prefix="rsyncfs-soak-", dir="/var/tmp", ignore_cleanup_errors=True) as place:
            results.append(run(Path(place), time.monotonic() + left / (len(campaigns) - number)))
        print(table(results[-1:]), flush=True)
        for problem in results[-1].problems:
            print(f"\n{problem}\nagain with: {repeat(results[-1])}", flush=True)
    print(f"\n{table(results)}")
    if words.json is not None:
        machine = {"kernel": platform.release(), "cores": os.cpu_count()}
        words.json.parent.mkdir(parents=True, exist_ok=True)
        words.json.write_text(json.dumps({**machine, "campaigns": [summary(result) for result in results]}, indent=2))
    return 1 if any(result.problems or result.unfinished for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())

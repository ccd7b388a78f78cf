"""`python -m tests.workload DIR`: change a tree at random for some seconds, then tell how often what was done.

Exit code 1 if something failed that no race between the processes explains.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.support.operations import MIB
from tests.workload.crew import Plan, Tally, run
from tests.workload.stream import STORMS


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.workload", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="made if missing; one left by a round goes on")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="it ends by itself then, or on SIGTERM")
    parser.add_argument("--steps", type=int, help="of each process, at most")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--storm", choices=STORMS)
    parser.add_argument("--room", type=int, default=200, metavar="MIB", help="that the files may take")
    parser.add_argument("--rate", type=float, metavar="STEPS", help="a second, of each process, at most")
    parser.add_argument("--outside", type=Path, metavar="DIR", help="beside the tree, for files that leave it")
    parser.add_argument("--json", action="store_true")
    return parser


def table(tally: Tally) -> str:
    """Per action, how often it was done, lost to a race, and refused by the kernel."""
    names = sorted(tally.done.keys() | tally.raced.keys() | tally.refused.keys())
    rows = [f"{name:36} {tally.done[name]:8} {tally.raced[name]:8} {tally.refused[name]:8}" for name in names]
    return "\n".join([f"{'action':36} {'done':>8} {'raced':>8} {'refused':>8}", *rows])


def main() -> int:
    """Do what the command line says."""
    words = arguments().parse_args()
    plan = Plan(
        words.directory,
        words.seed,
        words.seconds,
        words.processes,
        words.storm,
        words.room * MIB,
        words.outside,
        words.rate,
        words.steps,
    )
    tally = run(plan)
    print(json.dumps(vars(tally)) if words.json else table(tally), flush=True)
    for failure in tally.failures:
        print(failure, file=sys.stderr)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""The workers, each a process: started together, ended by time, by a number of steps, or by SIGTERM; then counted.

Takes a `Plan`; gives a `Tally` of each. A worker that fails in a way that no race explains ends the round, and the
tally says how. No worker outlives the process that called `run`. What they leave is where another round goes on.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from tests.support.helpers import SOURCES, helper
from tests.support.operations import MIB, Unsupported
from tests.workload.action import RACES, actions
from tests.workload.field import Field
from tests.workload.stream import Step, stream

CHECK = 16
"""Steps between two looks at how much room is taken."""
_PDEATHSIG = 1


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    directory: Path
    seed: int = 1
    seconds: float | None = 10.0
    processes: int = 4
    storm: str | None = None
    room: int = 200 * MIB
    """Bytes that the files may take, but for what is written between two looks."""
    outside: Path | None = None
    rate: float | None = None
    """Steps a second of each process, at most."""
    steps: int | None = None
    """Of each process, at most."""


@dataclass
class Tally:
    """What was done, by action."""

    done: Counter[str] = field(default_factory=Counter)
    raced: Counter[str] = field(default_factory=Counter)
    """Could not be done, because of what others did."""
    refused: Counter[str] = field(default_factory=Counter)
    """This kernel cannot do it on this filesystem."""
    bounded: int = 0
    """How often the room was full, and files or directories had to go."""
    failures: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count the other's, too."""
        for mine, theirs in ((self.done, other.done), (self.raced, other.raced), (self.refused, other.refused)):
            mine.update(theirs)
        self.bounded += other.bounded
        self.failures += other.failures


class _Stopped:
    """Whether SIGTERM has come."""

    def __init__(self) -> None:
        self.now = False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self.now = True


def run(plan: Plan) -> Tally:
    """Do it. To be called in a process without other threads: it forks, and takes SIGTERM for itself."""
    Field(plan.directory).prepare()
    for source in SOURCES.glob("*.c"):
        helper(source.stem)  # built once, here
    stopped = _Stopped()
    context = multiprocessing.get_context("fork")
    workers = []
    for number in range(plan.processes):
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_begin, args=(plan, number, theirs, os.getpid()))
        worker.start()
        theirs.close()
        workers.append((worker, ours))
    total, failed = Tally(), False
    left = dict(enumerate(workers))
    while left:
        if stopped.now or failed:
            for worker, _ in left.values():
                worker.terminate()
        for number, (worker, ours) in list(left.items()):
            if ours.poll(0.05 / len(left)) or not worker.is_alive():
                tally = _hear(number, ours)
                total.add(tally)
                failed = failed or bool(tally.failures)
                worker.join()
                del left[number]
    return total


def _hear(number: int, pipe: Connection) -> Tally:
    try:
        tally = pipe.recv()
    except EOFError:
        return Tally(failures=[f"worker {number} was killed"])
    assert isinstance(tally, Tally)
    return tally


def _begin(plan: Plan, number: int, pipe: Connection, parent: int) -> None:
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:
        pipe.send(work(plan, number, _Stopped()))


def work(plan: Plan, number: int, stopped: _Stopped | None = None) -> Tally:
    """One worker, in this process."""
    place = Field(plan.directory, number, plan.outside)
    place.prepare()
    tally, began = Tally(), time.monotonic()
    for step in stream(plan.seed, number, plan.storm):
        if (stopped is not None and stopped.now) or (plan.steps is not None and step.number >= plan.steps):
            break
        if plan.seconds is not None and time.monotonic() - began >= plan.seconds:
            break
        if not _take(step, place, tally):
            break
        if step.number % CHECK == CHECK - 1 and place.bound(plan.room, Random(step.seed)):
            tally.bounded += 1
        if plan.rate is not None:
            time.sleep(max(0.0, began + step.number / plan.rate - time.monotonic()))
    return tally


def _take(step: Step, place: Field, tally: Tally) -> bool:
    """One step; whether others may follow."""
    try:
        actions[step.action].do(place, Random(step.seed))
    except Unsupported:
        tally.refused[step.action] += 1
    except OSError as error:
        if error.errno not in RACES:
            tally.failures.append(_words(step, place))
            return False
        tally.raced[step.action] += 1
    except (AssertionError, subprocess.SubprocessError, ValueError):
        tally.failures.append(_words(step, place))
        return False
    else:
        tally.done[step.action] += 1
    return True


def _words(step: Step, place: Field) -> str:
    return f"worker {place.number}, step {step.number}, {step.action}:\n{traceback.format_exc()}"

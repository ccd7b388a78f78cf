"""The workload of a soak: `python -m tests.workload` as a process, until the caller has seen enough.

Takes where, a seed and how fast; a context manager that gives an object whose `operations` are counted when it is over.
AssertionError, at its end, if a worker failed.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.deadline import SLOW
from tests.support.pair import environment


@dataclass
class Load:
    """One round."""

    operations: int = 0
    """That were done, once it is over."""


@contextlib.contextmanager
def load(
    tree: Path, outside: Path, logs: Path, seed: int, processes: int, rate: float | None, storm: str | None = None
) -> Iterator[Load]:
    """Change `tree` until the block ends. `rate`: steps a second of each process."""
    words: list[str | Path] = [sys.executable, "-m", "tests.workload", tree, "--outside", outside, "--json"]
    words += ["--seed", str(seed), "--seconds", "3600", "--processes", str(processes), "--room", "100"]
    words += ["--rate", str(rate)] if rate else []
    words += ["--storm", storm] if storm else []
    said, log = logs / "workload.json", logs / "workload.log"
    round_ = Load()
    with said.open("wb") as out, log.open("wb") as errors:
        process = subprocess.Popen(words, stdout=out, stderr=errors, env=environment())
        try:
            yield round_
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120 * SLOW)
    if process.returncode == -signal.SIGTERM and not said.read_bytes():
        return  # it was over before it had begun
    assert process.returncode == 0, f"the workload failed: {said.read_text()[-3000:]} {log.read_text()[-3000:]}"
    round_.operations = sum(json.loads(said.read_text())["done"].values())

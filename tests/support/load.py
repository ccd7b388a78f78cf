"""Writers that never pause, for a bounded time: the weather in which the other tests happen.

Takes a directory; a thread in this process works in it until told to stop or its time is over, whichever is first. What
it does is random but seeded; what it meets (a file that is gone) it takes lightly.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

LIMIT_SECONDS = 60.0
NAMES = 40


class Churn:
    """Writes, appends, renames, truncates, links and removes files in a directory; a context manager."""

    def __init__(self, directory: Path, seed: int = 1, limit: float = LIMIT_SECONDS) -> None:
        self._directory = directory
        self._random = random.Random(seed)
        self._limit = limit
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.turns = 0
        self.failure: BaseException | None = None

    def _path(self) -> Path:
        number = self._random.randrange(NAMES)
        return self._directory / f"d{number % 4}" / f"f{number}"

    def _turn(self) -> None:
        pick, path, other = self._random.randrange(10), self._path(), self._path()
        if pick < 3:
            path.write_bytes(self._random.randbytes(self._random.randrange(1, 20_000)))
        elif pick < 5:
            with path.open("ab") as file:
                file.write(self._random.randbytes(100))
        elif pick < 8:
            path.rename(other)
        elif pick == 8:
            directory = self._directory / f"d{self._random.randrange(4)}"
            directory.rename(self._directory / "moving")
            (self._directory / "moving").rename(directory)
        elif self._random.randrange(2):
            path.unlink()
        else:
            os.truncate(path, self._random.randrange(10_000))

    def _work(self) -> None:
        deadline = time.monotonic() + self._limit
        try:
            for number in range(4):
                (self._directory / f"d{number}").mkdir(parents=True, exist_ok=True)
            while not self._stop.is_set() and time.monotonic() < deadline:
                with contextlib.suppress(FileNotFoundError):
                    self._turn()
                self.turns += 1
                if self.turns % 8 == 0:
                    time.sleep(0.001)  # leaves the interpreter to the test; the replicator sees no pause in it
        except OSError as error:
            self.failure = error

    def stop(self) -> None:
        """End the load; raise what ended it early, if something did."""
        self._stop.set()
        self._thread.join(10)
        if self.failure is not None:
            raise self.failure

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(10)

"""`rsyncfs trace` as a process, and what it has shown.

Takes a directory and a scratch directory for its standard error; gives its lines as they come, and how many it says it
has left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.deadline import SLOW, eventually
from tests.support.pair import Process

POKE = "poke-of-the-test"


class Trace:
    """A context manager: attached when entered, ended as a user would when left."""

    def __init__(self, directory: Path, scratch: Path, options: Sequence[str] = ("--json",)) -> None:
        self._directory = directory
        self._pokes = 0
        self.process = Process(["trace", str(directory), *options], scratch / "trace.log")

    @property
    def lines(self) -> list[str]:
        """All but those of the file that the test pokes."""
        return [line for line in self.process.lines if POKE not in line]

    def records(self, file: str | None = None) -> list[dict[str, Any]]:
        """The lines as JSON, of one file if asked."""
        found = [json.loads(line) for line in self.lines]
        return [record for record in found if file is None or record["file"] == file]

    def see(self, file: str, what: str = "") -> dict[str, Any]:
        """Wait for a record of this file; the last one."""
        return eventually(lambda: self.records(file), 30, what or f"{file} is shown")[-1]

    def catch_up(self) -> None:
        """Wait until what happened before is shown. No line says that it is attached: its first answer does.

        Each time another file is written to, for lines of the last one may still come.
        """
        self._pokes += 1
        poke = self._directory / f"{POKE}-{self._pokes}-"
        seen = len(self.process.lines)
        eventually(
            lambda: poke.write_bytes(b"poke") and [1 for line in self.process.lines[seen:] if poke.name in line],
            60,
            "a write is shown",
            every=0.1 * SLOW,
        )
        poke.unlink()

    def left_out(self) -> int:
        """How much standard error says was left out, lines and records together."""
        told = re.findall(r"(?m)^rsyncfs: (\d+) (?:lines|records) were left out: ", self.process.text(1 << 20))
        return sum(map(int, told))

    def stop(self) -> None:
        """SIGTERM, and a clean end; what it showed last has arrived afterwards."""
        self.process.stop()

    def __enter__(self) -> Self:
        try:
            self.catch_up()
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.running():
            self.process.stop() if error is None else self.process.kill()

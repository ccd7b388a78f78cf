"""What became of one test in a guest: a line of JSON on its way out of the machine, a value here.

Takes and gives text; does no I/O. A line that a dying machine left unfinished is no outcome.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How it ended."""

    PASSED = "passed"
    FAILED = "failed"
    REFUSED = "n/a"
    """This kernel cannot do it on this filesystem; it said so itself."""


@dataclass(frozen=True)
class Outcome:
    """One test, on one filesystem if it is of a table."""

    table: str
    """The module's name without "test_": "write_paths", "tree_names", "attributes", or one of tests/kernel/guest."""
    row: str
    filesystem: str
    """"" for tests that choose their filesystems themselves."""
    verdict: Verdict
    seconds: float
    report: str = ""
    """What a reader needs of a failure, the logs' tails among it."""

    def line(self) -> str:
        """As a line of a file."""
        return json.dumps(asdict(self), ensure_ascii=True) + "\n"


def outcomes(text: str) -> Iterator[Outcome]:
    """Those in a file of lines."""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            fields = json.loads(line)
            yield Outcome(**{**fields, "verdict": Verdict(fields["verdict"])})

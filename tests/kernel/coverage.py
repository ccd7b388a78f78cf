"""docs/coverage.md: what was seen to pass, written by the runs on the kernels.

Takes outcomes by kernel and sensor; gives the document, the same one for the same outcomes. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.kernel.outcome import Outcome, Verdict

FILESYSTEMS = {"ext4": "ext4", "xfs": "XFS", "btrfs": "btrfs"}
TABLES = {
    "write_paths": ("Ways to write", ("write path: ", "stores through a mapping: ")),
    "tree_names": ("Names", ()),
    "attributes": ("Attributes", ()),
}
"""The tables' titles, and what their rows' names need not repeat."""
MARKS = {Verdict.PASSED: "✓", Verdict.FAILED: "✗", Verdict.REFUSED: "–"}
UNKNOWN = "?"

Results = Mapping[tuple[str, str], Sequence[Outcome]]
"""By (release, sensor)."""


def document(releases: Mapping[str, str], sensors: Sequence[str], results: Results) -> str:
    """The page; `releases` by series, oldest first."""
    series = list(releases)
    parts = [
        "# What is seen on which kernel",
        "",
        "`make test-kernels` writes this page: it does each of these things on Debian's kernels in virtual machines,",
        "replicates it with each sensor, and compares both trees and the bytes that travelled. What the sensors are is",
        "told in [architecture.md](architecture.md).",
        "",
        f"Each cell has a mark for each kernel, in the order {', '.join(series)}: ✓ replicated, and for no more bytes",
        "than were touched; ✗ not so; – this kernel cannot do it on this filesystem, and says so; ? not known, for the",
        "machine ended before.",
        "",
        "| series | kernel |",
        "|---|---|",
        *(f"| {one} | {release} |" for one, release in releases.items()),
    ]
    for table, (title, needless) in TABLES.items():
        marks, rows = _marks(table, releases, sensors, results)
        columns = [(fstype, sensor) for fstype in FILESYSTEMS for sensor in sensors]
        heads = [f"{FILESYSTEMS[fstype]} {sensor.replace('-', ' ')}" for fstype, sensor in columns]
        parts += ["", f"## {title}", "", f"| | {' | '.join(heads)} |", f"|---|{':-:|' * len(columns)}"]
        for row in rows:
            cells = [
                "".join(marks.get((row, fstype, sensor, one), UNKNOWN) for one in series) for fstype, sensor in columns
            ]
            parts.append(f"| {_short(row, needless)} | {' | '.join(cells)} |")
    return "\n".join(parts) + "\n"


def _marks(
    table: str, releases: Mapping[str, str], sensors: Sequence[str], results: Results
) -> tuple[dict[tuple[str, str, str, str], str], list[str]]:
    """Marks by (row, filesystem, sensor, series), and the rows in the order of the tests."""
    marks: dict[tuple[str, str, str, str], str] = {}
    rows: dict[str, None] = {}
    for series, release in releases.items():
        for sensor in sensors:
            for outcome in results.get((release, sensor), ()):
                if outcome.table == table:
                    rows.setdefault(outcome.row)
                    marks[outcome.row, outcome.filesystem, sensor, series] = MARKS[outcome.verdict]
    return marks, list(rows)


def _short(row: str, needless: Sequence[str]) -> str:
    for words in needless:
        row = row.removeprefix(words)
    return row.replace("|", "\\|")

"""What every bench does with what it measured: a table for people, JSON for programs, a picture for both.

Takes one object of figures; prints a table (or the object, with --json), and leaves NAME.json and NAME.png in the
directory that --output names (build/bench). Without matplotlib there is no picture, and that is said.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

WIDTH = 150
"""Columns of a table that goes to a file."""
OUTPUT = Path(__file__).resolve().parent.parent / "build" / "bench"


@dataclass(slots=True)
class Bars:
    """A picture of horizontal bars, one for each (row, series); `target` is a line across."""

    title: str
    unit: str
    rows: Mapping[str, Mapping[str, float]]
    """By row, then by series. A row may lack a series."""
    log: bool = False
    target: float | None = None


@dataclass(slots=True)
class Lines:
    """A picture of lines over a size that grows; both axes are logarithmic."""

    title: str
    across: str
    unit: str
    lines: Mapping[str, Mapping[float, float]]


@dataclass(slots=True)
class Report:
    """What a bench publishes."""

    name: str
    figures: dict[str, Any]
    tables: Sequence[Table]
    picture: Bars | Lines
    remarks: Sequence[str] = field(default_factory=tuple)


def arguments(description: str | None, *, peers: bool = False) -> argparse.ArgumentParser:
    """A parser with what all benches understand: a directory, --json, --output, and --peers if that is offered."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("directory", nargs="?", type=Path, default=Path("/var/tmp"), help="where it is measured")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of tables")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the JSON and the picture are left")
    if peers:
        parser.add_argument("--peers", action="store_true", help="measure other replicators, too")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options. Ends the process if it is not root's."""
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("the bench needs root: run it with sudo")
    return options


def machine() -> dict[str, Any]:
    """On what it was measured."""
    return {"cpus": os.cpu_count(), "kernel": os.uname().release}


def publish(report: Report, options: argparse.Namespace) -> None:
    """Print it, and leave it in files."""
    report.figures = machine() | report.figures
    data = orjson.dumps(report.figures, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"{report.name}.json").write_bytes(data + b"\n")
    drawn = _draw(report.picture, options.output / f"{report.name}.png")
    if options.json:
        sys.stdout.write(orjson.dumps(report.figures, option=orjson.OPT_NON_STR_KEYS).decode() + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for table in report.tables:
        console.print(table)
    for remark in report.remarks:
        console.print(remark, highlight=False)
    console.print(f"in {options.output}: {report.name}.json{drawn}", style="dim", highlight=False)


def _draw(picture: Bars | Lines, path: Path) -> str:
    """Draw it; what to say of that."""
    try:
        import matplotlib
    except ImportError:
        return "; no picture: matplotlib is not here (make bench has it installed)"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    if isinstance(picture, Bars):
        _bars(pyplot, picture)
    else:
        _lines(pyplot, picture)
    pyplot.tight_layout()
    pyplot.savefig(path, dpi=110)
    pyplot.close()
    return f", {path.name}"


def _bars(pyplot: Any, picture: Bars) -> None:
    series = list(dict.fromkeys(name for row in picture.rows.values() for name in row))
    height = 0.8 / len(series)
    _, axes = pyplot.subplots(figsize=(9, 1.2 + 0.42 * len(picture.rows) * len(series)))
    for number, name in enumerate(series):
        at = [place + number * height for place, row in enumerate(picture.rows.values()) if name in row]
        values = [row[name] for row in picture.rows.values() if name in row]
        bars = axes.barh(at, values, height * 0.9, label=name)
        axes.bar_label(bars, [f" {value:,.4g}" for value in values], fontsize=8)
    axes.set_yticks([place + height * (len(series) - 1) / 2 for place in range(len(picture.rows))], list(picture.rows))
    axes.invert_yaxis()
    axes.set_xlabel(picture.unit)
    axes.set_title(picture.title, loc="left", fontsize=11)
    if picture.log:
        axes.set_xscale("log")
    axes.margins(x=0.15)
    if picture.target is not None:
        axes.axvline(picture.target, color="black", linestyle="--", linewidth=1, label="target")
    if len(series) > 1 or picture.target is not None:
        axes.legend(fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _lines(pyplot: Any, picture: Lines) -> None:
    _, axes = pyplot.subplots(figsize=(8, 4.5))
    for name, values in picture.lines.items():
        axes.plot(list(values), list(values.values()), marker="o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(picture.across)
    axes.set_ylabel(picture.unit)
    axes.set_title(picture.title, loc="left", fontsize=11)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8)

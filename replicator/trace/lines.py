"""Batches of records as lines of text or of JSON.

Takes records with the number of each one's file and writer; gives one line a record. What a file's or a writer's
lines have in common is made once for each, so that a batch costs little more than its numbers. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from replicator.attribution.label import WIDTH, label
from replicator.capture.event import TO_THE_END, EventKind, Events
from replicator.capture.groups import Numbers
from replicator.observe.log import printable

_SECOND = 1_000_000_000


def _table(names: dict[EventKind, str]) -> npt.NDArray[np.object_]:
    """By the number of a kind, what is shown for it."""
    table = np.full(256, None, dtype=object)
    for kind, name in names.items():
        table[int(kind)] = name
    return table


SHOWN_KINDS = {kind: kind.name.lower() for kind in (EventKind.WRITE, EventKind.FOLIO, EventKind.SIZE, EventKind.TAIL)}
SHOWN_KINDS[EventKind.WHOLE] = "whole"
_TEXT_KINDS = _table({kind: f"{name:5}" for kind, name in SHOWN_KINDS.items()})
_JSON_KINDS = _table({kind: f',"kind":"{name}","file":' for kind, name in SHOWN_KINDS.items()})
_SHOWN = np.isin(np.arange(256), [int(kind) for kind in SHOWN_KINDS])


def shown(records: Events) -> Events:
    """Those of `records` that become lines: of bytes and sizes, not of names and attributes."""
    kept: Events = records[_SHOWN[records["kind"]]]
    return kept


class Author(NamedTuple):
    """Who made a record."""

    process: str
    """Printable."""
    pid: int
    cgroup: int
    container: str | None
    """The control group's path, None if it is not known."""


class Format(Protocol):
    """One form of lines."""

    def file(self, path: bytes) -> str:
        """What the lines of one file have in common."""

    def author(self, author: Author) -> str:
        """What the lines of one writer have in common."""

    def lines(
        self, records: Events, files: Sequence[str], file: Numbers, authors: Sequence[str], author: Numbers
    ) -> list[str]:
        """A line, with its end, for each record; `file` and `author` are places in `files` and `authors`."""


class TextLines:
    """Columns: time, what, offset+length, process's number and name, control group, file."""

    def file(self, path: bytes) -> str:
        """See `Format.file`."""
        return f" {printable(path)}\n"

    def author(self, author: Author) -> str:
        """See `Format.author`."""
        return f" {author.pid:>7} {author.process:15} {label(author.container):{WIDTH}}"

    def lines(
        self, records: Events, files: Sequence[str], file: Numbers, authors: Sequence[str], author: Numbers
    ) -> list[str]:
        """See `Format.lines`."""
        seconds, rest = np.divmod(records["ts"], _SECOND)
        columns = zip(
            seconds.tolist(),
            (rest // 1000).tolist(),
            _TEXT_KINDS[records["kind"]].tolist(),
            records["off"].tolist(),
            _lengths(records, "end"),
            _pick(authors, author),
            _pick(files, file),
            strict=True,
        )
        return [f"{s:7d}.{u:06d} {kind} {f'{at}+{n}':>24}{who}{path}" for s, u, kind, at, n, who, path in columns]


class JsonLines:
    """An object a line: time, kind, file, offset, length, process, pid, cgroup, container.

    The time is CLOCK_MONOTONIC in seconds, offset and length are bytes; a length of null is "to the end".
    """

    def file(self, path: bytes) -> str:
        """See `Format.file`."""
        return orjson.dumps(printable(path)).decode()

    def author(self, author: Author) -> str:
        """See `Format.author`."""
        return f",{orjson.dumps(author._asdict()).decode().removeprefix('{')}\n"

    def lines(
        self, records: Events, files: Sequence[str], file: Numbers, authors: Sequence[str], author: Numbers
    ) -> list[str]:
        """See `Format.lines`."""
        seconds, rest = np.divmod(records["ts"], _SECOND)
        columns = zip(
            seconds.tolist(),
            rest.tolist(),
            _JSON_KINDS[records["kind"]].tolist(),
            _pick(files, file),
            records["off"].tolist(),
            _lengths(records, "null"),
            _pick(authors, author),
            strict=True,
        )
        return [
            f'{{"time":{s}.{ns:09d}{kind}{path},"offset":{at},"length":{n}{who}'
            for s, ns, kind, path, at, n, who in columns
        ]


def _lengths(records: Events, to_the_end: str) -> list[int | str]:
    lengths = records["len"]
    found: list[int | str] = lengths.tolist()
    for at in np.flatnonzero(lengths == TO_THE_END).tolist():
        found[at] = to_the_end
    return found


def _pick(texts: Sequence[str], places: Numbers) -> list[str]:
    if len(texts) == 1:
        return [texts[0]] * len(places)
    return [texts[place] for place in places.tolist()]

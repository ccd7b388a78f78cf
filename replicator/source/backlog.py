"""Whose changes are owed: the writers of the backlog, the largest first.

Takes an outbox; gives rows for `status`. A writer is a process by its name in one control group: many processes of the
same name are one row. What an inode owes is divided among its writers by what each has written, so that a writer that
writes the same bytes again and again owes them once. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from replicator.dirty.table import Owed
from replicator.model import FileId
from replicator.source import figures
from replicator.source.outbox import Outbox

SAMPLE = 20_000
"""Dirty inodes that are looked at; beyond, every second one, every third one, ..."""


@dataclass(slots=True)
class _Row:
    process: str | None
    cgroup: int
    container: str | None
    pids: set[int] = field(default_factory=set)
    files: set[FileId] = field(default_factory=set)
    bytes: int = 0
    leaving_files: set[FileId] = field(default_factory=set)
    leaving_bytes: int = 0


_Rows = dict[tuple[str | None, int], _Row]


def writers(outbox: Outbox, most: int, sample: int = SAMPLE) -> tuple[list[dict[str, Any]], bool]:
    """The `most` largest writers of what is not durable, by bytes, then files; and whether that is an estimate.

    A row has: process (None: not known), pid (None: several, or not known), processes, cgroup, container (None: not
    known), files, bytes. `sample` bounds the work.
    """
    rows: _Rows = {}
    step = -(-len(outbox.table) // sample) or 1
    _add(rows, outbox, islice(outbox.table.values(), 0, None, step), leaving=False)
    _add(rows, outbox, outbox.leaving(), leaving=True)
    told = [_told(row, step) for row in rows.values()]
    told.sort(key=lambda row: (row["bytes"], row["files"]), reverse=True)
    return told[:most], step > 1


def _add(rows: _Rows, outbox: Outbox, owing: Iterable[Owed], *, leaving: bool) -> None:
    for owed in owing:
        shares = list(owed.share)
        written = sum(amount for _, amount in shares)
        extent = figures.extent(outbox, owed)
        owes = written if extent is None else min(extent, written)
        for writer, amount in shares:
            key = writer.process, writer.cgroup
            row = rows.get(key)
            if row is None:
                row = rows[key] = _Row(writer.process, writer.cgroup, writer.container)
            part = amount * owes // written if written else 0
            row.container = row.container or writer.container
            if writer.pid:
                row.pids.add(writer.pid)
            if leaving:
                row.leaving_files.add(owed.id)
                row.leaving_bytes += part
            else:
                row.files.add(owed.id)
                row.bytes += part


def _told(row: _Row, step: int) -> dict[str, Any]:
    return {
        "process": row.process,
        "pid": next(iter(row.pids)) if len(row.pids) == 1 else None,
        "processes": len(row.pids),
        "cgroup": row.cgroup,
        "container": row.container,
        "files": len(row.files) * step + len(row.leaving_files - row.files),
        "bytes": row.bytes * step + row.leaving_bytes,
    }

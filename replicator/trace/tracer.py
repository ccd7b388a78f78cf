"""`trace`: the write ranges, and the sizes set, under a directory as they happen.

Takes a directory; prints one line a record of an inode that has a name below it: time, what, offset, length, process,
control group, file. It never waits for who reads the lines: what comes faster than it can be looked at, made into lines
or read is left out, and standard error says how much. Nothing else is missing.
"""

from __future__ import annotations

import selectors
import sys
import time
from collections import deque
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from replicator.attribution.cgroups import Cgroups
from replicator.attribution.processes import UNKNOWN, command_of
from replicator.capture.event import Events
from replicator.capture.groups import INODE, WRITER, Numbers, group
from replicator.capture.looks import parted
from replicator.capture.names import Names
from replicator.capture.select import select_sensor
from replicator.model import FileId
from replicator.observe.log import printable
from replicator.trace.lines import Author, Format, JsonLines, TextLines, shown
from replicator.trace.output import Output
from replicator.trace.paths import Paths, ToldNames
from replicator.tree.handles import SourceRoot

BATCH: Final = 1 << 16
"""Records that are drained at once."""
PIECE: Final = 1 << 12
"""Records that become lines before it is asked again whether there is room for them."""
WAITING: Final = 1 << 20
"""Drained records that may wait for the names to be looked at, or to become lines (64 bytes each)."""
BEHIND: Final = 1 << 18
"""Drained records above which lines are no longer made until it is less."""
PATIENCE: Final = 2.0  # s
AUTHORS: Final = 10_000


class Tracer:
    """Prints until `stop`."""

    def __init__(self, path: Path, *, as_json: bool) -> None:
        """Attach; EnvironmentFault if something is missing."""
        self._stopping = False
        self._format: Format = JsonLines() if as_json else TextLines()
        self._source = SourceRoot.open(path)
        self._sensor = select_sensor("auto", self._source.fstype, tracing=True)
        self._sensor.attach(self._source)
        self._names = None if self._sensor.tells_names else Names(self._source)
        self._told_names = ToldNames()
        self._paths = Paths(self._source, self._names or self._told_names)
        self._cgroups = Cgroups()
        self._output = Output(sys.stdout.fileno())
        self._errors = Output(sys.stderr.fileno())
        self._authors: dict[tuple[str, int, int], str] = {}
        self._drained: deque[Events] = deque()
        self._waiting = 0
        self._lines_left_out = self._records_left_out = self._lost = 0
        self._told = time.monotonic()

    def stop(self) -> None:
        """End `run`."""
        self._stopping = True

    def close(self) -> None:
        """Detach."""
        self._errors.close()
        self._output.close()
        self._cgroups.close()
        self._paths.close()
        if self._names is not None:
            self._names.close()
        self._sensor.close()
        self._source.close()

    def run(self) -> None:
        """Print what happens until `stop`, or until nobody reads it."""
        selector = selectors.PollSelector()
        for watched in (self._sensor, self._names):
            if watched is not None:
                selector.register(watched.fileno(), selectors.EVENT_READ)
        try:
            self._turn()
            while not self._stopping:
                if self._output.behind:
                    selector.register(self._output.fileno(), selectors.EVENT_WRITE)
                selector.select(0.0 if self._drained else 0.02 if self._paths.waiting else 0.25)
                if self._output.behind:
                    selector.unregister(self._output.fileno())
                self._turn()
            self._finish()
        except BrokenPipeError:
            pass
        finally:
            selector.close()

    def _turn(self) -> None:
        """Show what was drained before the names were: whose files are new by then has their names there."""
        self._drain()
        named = len(self._drained)
        self._paths.update(self._drain)
        self._output.flush()
        for _ in range(named):
            records = self._drained.popleft()
            self._waiting -= len(records)
            self._show(records, left_out=self._waiting > BEHIND)
            self._drain()
        if time.monotonic() - self._told >= 1:
            self._tell()

    def _drain(self) -> None:
        """Empty the ring: what stays in there takes room from what comes."""
        while (records := self._sensor.drain(BATCH)) is not None:
            records, looks = parted(records, self._sensor.names())
            self._told_names.add(timed.look for timed in looks)
            self._sensor.advance()
            if self._waiting + len(records) > WAITING:
                self._records_left_out += len(records)
            else:
                self._waiting += len(records)
                self._drained.append(records)

    def _finish(self) -> None:
        """Show what happened up to now, as far as the reader takes it."""
        target = self._sensor.produced()
        while self._sensor.consumed() < target or self._drained:
            self._turn()
        self._lines_left_out += self._output.finish(PATIENCE)
        self._errors.finish(PATIENCE)
        self._tell()
        self._errors.finish(PATIENCE)

    # ------------------------------------------------------------------ lines

    def _show(self, records: Events, *, left_out: bool) -> None:
        records = shown(records)
        if not len(records):
            return
        inodes = group(records, INODE)
        paths = [self._paths.path(FileId(*head)) for head in records[inodes.heads][list(INODE)].tolist()]
        file = inodes.numbers()
        if None in paths:
            ours = np.array([path is not None for path in paths])[file]
            records, file = records[ours], file[ours]
        if not len(records):
            return
        if left_out:
            self._lines_left_out += len(records)
            return
        files = ["" if path is None else self._format.file(path) for path in paths]
        authors, author = self._authored(records)
        for at in range(0, len(records), PIECE):
            if self._output.full:
                self._lines_left_out += len(records) - at
                return
            piece = slice(at, at + PIECE)
            lines = self._format.lines(records[piece], files, file[piece], authors, author[piece])
            self._output.add("".join(lines).encode())

    def _authored(self, records: Events) -> tuple[list[str], Numbers]:
        """What lines say of their writers, and which of that belongs to each record."""
        writers = group(records, WRITER)
        author = writers.numbers()
        authors: list[str] = []
        formers: list[tuple[npt.NDArray[np.bool_], str]] = []
        for number, (pid, cgroup) in enumerate(records[writers.heads][list(WRITER)].tolist()):
            command = self._sensor.command(pid)
            if command is None:
                authors.append(self._author(command_of(pid) or UNKNOWN, pid, cgroup))
                continue
            authors.append(self._author(printable(command.name), pid, cgroup))
            if command.before:
                earlier = (author == number) & (records["ts"] < command.since)
                formers.append((earlier, self._author(printable(command.before), pid, cgroup)))
        for earlier, text in formers:
            author[earlier] = len(authors)
            authors.append(text)
        return authors, author

    def _author(self, process: str, pid: int, cgroup: int) -> str:
        key = process, pid, cgroup
        text = self._authors.get(key)
        if text is None:
            if len(self._authors) >= AUTHORS:
                self._authors.clear()
            text = self._authors[key] = self._format.author(Author(*key, self._cgroups.path(cgroup)))
        return text

    # ------------------------------------------------------------------ what is missing

    def _tell(self) -> None:
        self._told = time.monotonic()
        # A record whose inode could not be kept either counts twice.
        lost = sum(total for cause, total in self._sensor.losses().items() if cause != "lost_map_full")
        self._records_left_out += lost - self._lost
        self._lost = lost
        said = []
        if self._lines_left_out:
            said.append(f"{self._lines_left_out} lines were left out: they came faster than they could be shown")
        if self._records_left_out:
            said.append(f"{self._records_left_out} records were left out: more happened than could be read")
        try:
            self._errors.flush()
            if said and not self._errors.behind:  # a standard error that takes nothing is told the sum later
                self._errors.add("".join(f"rsyncfs: {words}\n" for words in said).encode())
                self._lines_left_out = self._records_left_out = 0
        except BrokenPipeError:
            pass

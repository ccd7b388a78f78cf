"""`trace`: the write ranges, and the sizes set, under a directory as they happen.

Takes a directory; prints one line a record of an inode that has a name below it: time, what, offset, length, process,
file. Records of the same drain whose file is not known yet are printed once its name was looked up. Says how many
records the kernel could not hand over.
"""

from __future__ import annotations

import selectors
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from replicator.capture.event import TO_THE_END, EventKind
from replicator.capture.names import Names, Overflow, SlotLook
from replicator.capture.select import select_sensor
from replicator.dirty.generations import Generations
from replicator.model import FileId
from replicator.observe.log import printable
from replicator.source.look import SourceNamespace
from replicator.tree.exclude import Exclude
from replicator.tree.handles import SourceRoot
from replicator.tree.index import TreeIndex
from replicator.tree.resolver import Resolver

_KINDS = {int(kind): kind.name.lower() for kind in EventKind}


class Tracer:
    """Prints until `stop`."""

    def __init__(self, path: Path, *, as_json: bool) -> None:
        """Attach; EnvironmentFault if something is missing."""
        self._json = as_json
        self._stopping = False
        self._source = SourceRoot.open(path)
        self._sensor = select_sensor("auto", self._source.fstype)
        self._sensor.attach(self._source)
        self._names = None if self._sensor.tells_names else Names(self._source)
        self._view = SourceNamespace(self._source)
        self._index = TreeIndex(self._source.id)
        self._generations = Generations()
        self._resolver = Resolver(self._index, Exclude(()), self._generations)
        self._resolver.complete = True
        self._commands: dict[int, str] = {}
        self._lost = 0

    def stop(self) -> None:
        """End `run`."""
        self._stopping = True

    def close(self) -> None:
        """Detach."""
        self._view.close()
        if self._names is not None:
            self._names.close()
        self._sensor.close()
        self._source.close()

    def run(self) -> None:
        """Print what happens until `stop`, or until nobody reads it."""
        self._resolver.list(self._index.root, time.monotonic_ns())
        self._look()
        selector = selectors.PollSelector()
        for watched in (self._sensor, self._names):
            if watched is not None:
                selector.register(watched.fileno(), selectors.EVENT_READ)
        try:
            while not self._stopping:
                selector.select(0.25)
                records = self._sensor.drain(1 << 16)
                self._look()
                if records is not None:
                    self._sensor.advance()
                    lines = [line for record in records.tolist() if (line := self._line(record)) is not None]
                    sys.stdout.write("".join(lines))
                    sys.stdout.flush()
                self._tell_losses()
        except BrokenPipeError:
            sys.stdout = open("/dev/null", "w")  # noqa: SIM115
        finally:
            selector.close()

    def _look(self) -> None:
        now = time.monotonic_ns()
        for look in self._names.drain_queued() if self._names is not None else ():
            if isinstance(look, SlotLook):
                self._resolver.look(look.slot, now)
            elif isinstance(look, Overflow):
                for id in self._index.subtree(self._index.root):
                    if self._index.is_directory(id):
                        self._resolver.list(id, now)
        while self._resolver.workable:
            changes = self._resolver.resolve(self._view, time.monotonic_ns())
            for due in (*(due for _, due in changes.slots), *(due for _, due in changes.dead)):
                self._generations.release(due.generation)
            if changes.failed:
                return

    def _line(self, record: tuple[Any, ...]) -> str | None:
        ts, ino, offset, length, root, cgroup, gen, pid, kind, fs = record[:10]
        if kind == EventKind.ATTR:
            return None
        path = self._index.path(FileId(fs, root, ino, gen))
        if path is None:
            return None
        command = self._command(pid)
        what = _KINDS.get(kind, "whole")
        if self._json:
            fields = {
                "time": ts / 1e9,
                "kind": what,
                "file": printable(path),
                "offset": offset,
                "length": None if length == TO_THE_END else length,
                "process": command,
                "pid": pid,
                "cgroup": cgroup,
            }
            return orjson.dumps(fields).decode() + "\n"
        span = f"{offset}+{'end' if length == TO_THE_END else length}"
        return f"{ts / 1e9:14.6f} {what:5} {span:>24} {pid:>7} {command:15} {printable(path)}\n"

    def _command(self, pid: int) -> str:
        command = self._commands.get(pid)
        if command is None:
            try:
                command = printable(Path(f"/proc/{pid}/comm").read_bytes().rstrip(b"\n"))
            except OSError:
                command = "?"
            if len(self._commands) > 10_000:
                self._commands.clear()
            self._commands[pid] = command
        return command

    def _tell_losses(self) -> None:
        lost = sum(self._sensor.losses().values())
        if lost > self._lost:
            sys.stderr.write(f"rsyncfs: {lost - self._lost} records were left out: more happened than could be read\n")
            self._lost = lost

"""The intent log: what an epoch is about to touch, written before it does.

One JSON line an epoch, appended by a single write and not synced: it need survive the death of the process, not of the
machine (after that everything is looked at). Two files: lines of the epochs that are being made durable lie in the
older one, which goes when they are. An incomplete last line is one whose epoch took no step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from replicator.mirror.steps import Record
from replicator.model import FileId, Kind, Slot


@dataclass(slots=True)
class Intent:
    """What one epoch touches: places, inodes whose bytes change in place, and inodes it made (staged in limbo)."""

    epoch: int
    places: list[Slot] = field(default_factory=list)
    touched: list[FileId] = field(default_factory=list)
    made: list[tuple[FileId, bytes, Record]] = field(default_factory=list)
    """Id, the replica's file handle, record."""


class IntentLog:
    """Appends, turns over, reads back. OSError if the state directory fails."""

    def __init__(self, directory: Path) -> None:
        self._new, self._old = directory / "intents", directory / "intents.old"
        self._fd = os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def append(self, intent: Intent) -> None:
        """Write one intent."""
        line = orjson.dumps(
            {
                "epoch": intent.epoch,
                "places": [_place(place) for place in intent.places],
                "touched": [id.text() for id in intent.touched],
                "made": [[id.text(), handle.hex(), *_fields(record)] for id, handle, record in intent.made],
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        if os.write(self._fd, line) != len(line):
            raise OSError(28, "intent log: short write", str(self._new))

    def turn(self) -> None:
        """What was appended so far becomes the older file. An older file that is still there keeps its lines."""
        os.close(self._fd)
        if self._old.exists():
            with self._old.open("ab") as old:
                old.write(b"\n" + self._new.read_bytes())
            self._new.unlink()
        else:
            self._new.rename(self._old)
        self._fd = os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def settle(self) -> None:
        """The epochs of the older file are durable."""
        self._old.unlink(missing_ok=True)

    def clear(self) -> None:
        """Nothing is open any more."""
        self.settle()
        os.ftruncate(self._fd, 0)

    def read(self) -> list[Intent]:
        """All intents of epochs that are not durable, in order."""
        found: list[Intent] = []
        for path in (self._old, self._new):
            if path.exists():
                found.extend(_parse(path.read_bytes().split(b"\n")))
        return found

    def close(self) -> None:
        """Leaves the files as they are."""
        os.close(self._fd)


def _parse(lines: Iterable[bytes]) -> Iterable[Intent]:
    for line in lines:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        made = []
        for id, handle, kind, size, mtime, ctime, complete in value["made"]:
            changed = None if ctime is None else int(ctime)
            made.append(
                (FileId.parse(id), bytes.fromhex(handle), Record(Kind(kind), size, int(mtime), changed, complete))
            )
        places = [Slot(FileId.parse(parent), name.encode("latin-1")) for parent, name in value["places"]]
        yield Intent(value["epoch"], places, [FileId.parse(id) for id in value["touched"]], made)


def _place(place: Slot) -> list[str]:
    return [place.parent.text(), place.name.decode("latin-1")]


def _fields(record: Record) -> list[object]:
    ctime = None if record.ctime_ns is None else str(record.ctime_ns)
    return [record.kind.value, record.size, str(record.mtime_ns), ctime, record.complete]

"""The intent log: what an epoch is about to touch, written before it does.

One JSON line an epoch, appended by a single write and not synced: it need survive the death of the process, not of the
machine (after that everything is looked at). Numbered files: each durable cycle begins a new one and removes the older
ones when it is done. An incomplete last line is one whose epoch took no step.
"""

from __future__ import annotations

import errno
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
    """Appends, turns over, reads back. OSError if the state directory fails; it can go on after that."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._number = max(self._numbers(), default=0)
        self._fd = self._open(self._number)

    def append(self, intent: Intent) -> None:
        """Write one intent."""
        texts: dict[FileId, str] = {}
        line = orjson.dumps(
            {
                "epoch": intent.epoch,
                "places": [
                    [texts.get(parent) or texts.setdefault(parent, parent.text()), name.decode("latin-1")]
                    for parent, name in intent.places
                ],
                "touched": [id.text() for id in intent.touched],
                "made": [[id.text(), handle.hex(), *_fields(record)] for id, handle, record in intent.made],
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        written = os.write(self._fd, line)
        if written != len(line):
            # Half a line would swallow the next one.
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path(self._number)))

    def fileno(self) -> int:
        """Of the file that is appended to, to be synced. Borrowed."""
        return self._fd

    def turn(self) -> None:
        """What is appended from now on goes to a new file, which `settle` spares."""
        fd = self._open(self._number + 1)
        os.close(self._fd)
        self._fd = fd
        self._number += 1

    def settle(self) -> None:
        """The epochs of all but the newest file are durable."""
        for number in self._numbers():
            if number < self._number:
                self._path(number).unlink(missing_ok=True)

    def clear(self) -> None:
        """Nothing is open any more."""
        self.settle()
        os.ftruncate(self._fd, 0)

    def read(self) -> list[Intent]:
        """All intents of epochs that are not durable, in order."""
        found: list[Intent] = []
        for number in self._numbers():
            found.extend(_parse(self._path(number).read_bytes().split(b"\n")))
        return found

    def close(self) -> None:
        """Leaves the files as they are."""
        os.close(self._fd)

    def _path(self, number: int) -> Path:
        return self._directory / f"intents.{number}"

    def _numbers(self) -> list[int]:
        return sorted(int(path.suffix[1:]) for path in self._directory.glob("intents.*") if path.suffix[1:].isdigit())

    def _open(self, number: int) -> int:
        return os.open(self._path(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


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


def _fields(record: Record) -> list[object]:
    ctime = None if record.ctime_ns is None else str(record.ctime_ns)
    return [record.kind.value, record.size, str(record.mtime_ns), ctime, record.complete]

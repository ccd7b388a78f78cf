"""A replica kept from a sensor's records alone: what they do not tell, it lacks.

Takes a mounted filesystem and a directory for the copies; attaches a sensor and, step by step, copies from each file
just what its records point at, by the rules of the sender: flush what is mapped, cut to the lowest size, copy the
ranges, set the size. Says how many bytes that took. Compares contents only; names are the tests' own affair.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from replicator.capture.event import TO_THE_END, EventFlag, EventKind
from replicator.capture.sensor import Filesystem
from replicator.capture.tracepoint import TracepointSensor

_CHUNK = 1 << 20
Record = dict[str, int]


def kernel_dev(point: Path) -> int:
    """The superblock's device of what is mounted at `point`, as the kernel numbers it."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        words = line.split()
        if words[4] == str(point):
            major, minor = map(int, words[2].split(":"))
            return major << 20 | minor
    raise AssertionError(f"{point} is not mounted")


@dataclass
class Claim:
    """What the records of one inode say together."""

    whole: bool
    lowest: int | None
    ranges: list[tuple[int, int]]
    """(start, end), in order, not overlapping."""
    mapped: bool = False
    """Later stores are told only after a flush."""


def claim(records: list[Record]) -> Claim:
    """Unite the records of one inode."""
    sizes = [record["off"] for record in records if record["kind"] == EventKind.SIZE]
    spans = []
    for record in records:
        if record["kind"] in (EventKind.WRITE, EventKind.FOLIO):
            spans.append((record["off"], min(record["off"] + record["len"], TO_THE_END)))
        elif record["kind"] == EventKind.TAIL:
            spans.append((record["off"], TO_THE_END))
    lowest = min(sizes, default=None)
    if lowest is not None:
        spans.append((lowest, TO_THE_END))
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return Claim(
        any(record["kind"] == EventKind.WHOLE for record in records),
        lowest,
        merged,
        any(record["flags"] & EventFlag.MAPPED for record in records),
    )


class Replay:
    """A sensor on `point` and the copies that its records keep; a context manager."""

    def __init__(self, fstype: str, point: Path, copies: Path) -> None:
        self.fstype, self.point, self.copies = fstype, point, copies
        copies.mkdir(exist_ok=True)
        self.sensor = TracepointSensor()
        self.sensor.attach(Filesystem(fstype, kernel_dev(point)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.sensor.close()

    def records(self) -> list[Record]:
        """All that were submitted since the last call."""
        found: list[Record] = []
        while (events := self.sensor.drain(65536)) is not None:
            rows: list[Any] = events.tolist()
            found += [dict(zip(events.dtype.names or (), row, strict=True)) for row in rows]
            self.sensor.advance()
        losses = self.sensor.losses()
        assert not any(losses.values()), losses
        return found

    def of(self, path: Path) -> list[Record]:
        """The new records that are about the file at `path`; drops the others."""
        number = path.stat().st_ino
        return [record for record in self.records() if record["ino"] == number]

    def start(self, *paths: Path) -> None:
        """Copy the files as they are now and forget what was recorded so far."""
        for path in paths:
            self._copy(path).unlink(missing_ok=True)
        self.records()
        for path in paths:
            self._apply(path, Claim(True, None, []))

    def follow(self, *paths: Path) -> int:
        """Bring the copies up to date by the new records; the bytes copied. AssertionError if one differs then."""
        by_inode: dict[int, list[Record]] = {}
        for record in self.records():
            by_inode.setdefault(record["ino"], []).append(record)
        copied = 0
        for path in paths:
            if path.is_file() and not path.is_symlink():
                known = self._copy(path).exists()
                told = claim(by_inode.get(path.stat().st_ino, []))
                copied += self._apply(path, told if known else Claim(True, None, []))
                self._compare(path, told)
        return copied

    def _copy(self, path: Path) -> Path:
        return self.copies / str(path.stat().st_ino)

    def _apply(self, path: Path, told: Claim) -> int:
        copied = 0
        with path.open("rb") as source, self._copy(path).open("ab") as target:
            there, here = source.fileno(), os.open(self._copy(path), os.O_WRONLY)
            try:
                if told.mapped:
                    os.fdatasync(there)
                size = os.fstat(there).st_size
                if told.whole:
                    os.truncate(here, 0)
                elif told.lowest is not None and told.lowest < target.tell():
                    os.truncate(here, told.lowest)
                for start, end in [(0, size)] if told.whole else told.ranges:
                    if start < size:
                        copied += _copy_range(there, here, start, min(end, size))
                os.truncate(here, size)
            finally:
                os.close(here)
        return copied

    def _compare(self, path: Path, told: Claim) -> None:
        with path.open("rb") as source, self._copy(path).open("rb") as copy:
            for start, end in _data(source.fileno(), 0, os.fstat(source.fileno()).st_size):
                _same(source.fileno(), copy.fileno(), start, end, told)
            for start, end in _data(copy.fileno(), 0, os.fstat(copy.fileno()).st_size):
                _same(source.fileno(), copy.fileno(), start, end, told)


def _data(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        if start < stop:
            yield start, stop
        start = stop


def _copy_range(there: int, here: int, start: int, end: int) -> int:
    """Copy data, make holes zero; the bytes of data."""
    copied, position = 0, start
    for data, stop in _data(there, start, end):
        _zero(here, position, data)
        for at in range(data, stop, _CHUNK):
            block = os.pread(there, min(_CHUNK, stop - at), at)
            os.pwrite(here, block, at)
            copied += len(block)
        position = stop
    _zero(here, position, end)
    return copied


def _zero(fd: int, start: int, end: int) -> None:
    end = min(end, os.fstat(fd).st_size)
    for data, stop in list(_data(fd, start, end)):
        os.pwrite(fd, bytes(stop - data), data)


def _same(source: int, copy: int, start: int, end: int, told: Claim) -> None:
    for at in range(start, end, _CHUNK):
        length = min(_CHUNK, end - at)
        there, here = os.pread(source, length, at), os.pread(copy, length, at)
        if there != here:
            if len(there) == len(here):
                at += next(i for i, (a, b) in enumerate(zip(there, here, strict=True)) if a != b)
            raise AssertionError(f"byte {at} changed and no record told: {told}")

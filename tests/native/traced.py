"""A mounted filesystem with a sensor on it, and questions about the records of one file.

Takes a filesystem type and a directory; gives the records that were made since the last question. Everything that the
test did before it asks is in the answer: records are in the ring when the system call returns.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from replicator.capture.bpf_sensor import BpfSensor
from replicator.capture.event import EVENT, TO_THE_END, EventFlag, EventKind, Events
from replicator.capture.sensor import Filesystem
from replicator.capture.tracepoint import TracepointSensor
from tests.support.deadline import eventually
from tests.support.filesystems import filesystem

BLOCK = 4096
_GETVERSION = 0x80087601

FORMS: dict[str, Callable[[int, int], BpfSensor]] = {
    "direct": TracepointSensor,
    "plain": partial(TracepointSensor, direct=False),
}
"""How programs read the kernel's memory: by loads, or by a helper as on older kernels."""

BYTES = frozenset({EventKind.WRITE, EventKind.FOLIO, EventKind.TAIL, EventKind.WHOLE})
"""The kinds that say that content may have changed."""

Range = tuple[int, int]


class Records:
    """The records of one inode since the last question."""

    def __init__(self, events: Events) -> None:
        self.events = events

    def __len__(self) -> int:
        return len(self.events)

    def __repr__(self) -> str:
        return "; ".join(
            f"{EventKind(int(event['kind'])).name} {event['off']}+{event['len']} {EventFlag(int(event['flags']))!s}"
            for event in self.events
        )

    @property
    def kinds(self) -> set[EventKind]:
        """Every kind among them."""
        return {EventKind(int(kind)) for kind in self.events["kind"]}

    @property
    def touched(self) -> list[Range]:
        """What may have changed, as merged [begin, end) in ascending order."""
        wanted = np.isin(self.events["kind"], [int(kind) for kind in BYTES])
        merged: list[Range] = []
        for event in np.sort(self.events[wanted], order=["off", "len"]):
            begin, length = int(event["off"]), int(event["len"])
            end = TO_THE_END if length == TO_THE_END else begin + length
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((begin, end))
        return merged

    @property
    def lowest(self) -> int | None:
        """The lowest size that was reported, None if none was."""
        sizes = self.events["off"][self.events["kind"] == EventKind.SIZE]
        return int(sizes.min()) if len(sizes) else None

    def flagged(self, kind: EventKind, flag: EventFlag) -> bool:
        """Whether there are records of this kind, and all of them bear the flag."""
        flags = self.events["flags"][self.events["kind"] == kind]
        return len(flags) > 0 and bool(np.all(flags & int(flag)))

    def covers(self, begin: int, length: int) -> bool:
        """Whether all of these bytes were reported."""
        return any(low <= begin and begin + length <= high for low, high in self.touched)

    def stays_within(self, begin: int, length: int, unit: int = BLOCK) -> bool:
        """Whether nothing outside these bytes, rounded to blocks, was reported."""
        low, high = begin // unit * unit, -(-(begin + length) // unit) * unit
        return all(low <= start and end <= high for start, end in self.touched)


class Traced:
    """A filesystem below `root` and the sensor that watches it."""

    def __init__(self, fstype: str, root: Path, sensor: BpfSensor) -> None:
        self.fstype = fstype
        self.root = root
        self.sensor = sensor
        self._names = 0

    def path(self) -> Path:
        """A new name."""
        self._names += 1
        return self.root / f"file{self._names}"

    def everything(self) -> Events:
        """Everything that was submitted before the call, whatever was lost besides."""
        target = self.sensor.produced()
        parts: list[Events] = [np.zeros(0, EVENT)]

        def complete() -> bool:
            while (events := self.sensor.drain(4096)) is not None:
                parts.append(events)
                self.sensor.advance()
            return self.sensor.consumed() >= target

        eventually(complete, what="the ring's records")
        return np.concatenate(parts)

    def drain(self) -> Events:
        """The same, and nothing was lost."""
        events = self.everything()
        assert not any(self.sensor.losses().values()), self.sensor.losses()
        return events

    def records(self, fd: int) -> Records:
        """The records of an open file since the last question; those of other files are dropped."""
        events = self.drain()
        events = events[events["ino"] == os.fstat(fd).st_ino]
        if self.fstype != "tmpfs":  # which does not tell the generation, and never gives a number twice
            generation = struct.unpack("=I", fcntl.ioctl(fd, _GETVERSION, bytes(8))[:4])[0]
            events = events[events["gen"] == generation]
        return Records(events)

    @contextlib.contextmanager
    def file(self, content: bytes = b"", flags: int = os.O_RDWR) -> Iterator[int]:
        """A new file, synced, opened with `flags`, its records dropped."""
        path = self.path()
        path.write_bytes(content)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        fd = os.open(path, flags)
        try:
            self.drain()
            yield fd
        finally:
            os.close(fd)


def kernel_dev(point: Path) -> int:
    """The superblock's device of a mount point, from mountinfo."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(point):
            major, minor = fields[2].split(":")
            return int(major) << 20 | int(minor)
    raise AssertionError(f"{point} is not mounted")


@contextlib.contextmanager
def traced(
    fstype: str,
    directory: Path,
    options: Sequence[str] = (),
    *,
    ring_bytes: int = 1 << 20,
    lost_inodes: int = 1024,
    made: Callable[[int, int], BpfSensor] = TracepointSensor,
) -> Iterator[Traced]:
    """A new filesystem with a sensor attached, `made` of both sizes; both are gone afterwards."""
    with filesystem(fstype, directory, options=options) as point:
        sensor = made(ring_bytes, lost_inodes)
        try:
            sensor.attach(Filesystem(fstype, kernel_dev(point)))
            yield Traced(fstype, point, sensor)
        finally:
            sensor.close()

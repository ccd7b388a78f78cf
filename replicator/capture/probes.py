"""Kernel probes (kprobes) for BPF programs, by way of tracefs, which counts what they miss.

Takes functions and programs; attaches, counts misses, removes. A return probe has room for so many calls at a time
(`ROOM`); calls beyond that are missed, and counted by the kernel. The definitions carry this process's number: those of
a process that was killed do nothing, and the next one that starts removes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

from replicator.errors import EnvironmentFault, UsageError

ROOM: Final = 4096
"""Calls of one function that may be under way at once; the kernel allows no more."""
ROOM_VARIABLE: Final = "RSYNCFS_PROBE_ROOM"
"""An environment variable that makes the room smaller."""
_PLACES: Final = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_PREFIX: Final = "rsyncfs_"
_SYSCALL: Final = {"x86_64": 298, "aarch64": 241}
_TYPE_TRACEPOINT: Final = 2
_IOC_ENABLE, _IOC_SET_BPF = 0x2400, 0x40042408
_CLOEXEC: Final = 8

_LONGEST: Final = 63
"""Characters of an event's name."""

_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


class Probe(NamedTuple):
    """A place in the kernel: where a function is entered, or has returned."""

    function: str
    returns: bool


def tracing() -> Path:
    """The tracefs with kprobes. EnvironmentFault if there is none."""
    for place in _PLACES:
        if (place / "kprobe_events").exists():
            return place
    raise EnvironmentFault(
        "kernel probes are not to be had: this kernel was built without them, or tracefs is not mounted "
        "(mount -t tracefs tracefs /sys/kernel/tracing)"
    )


def probes_refusal() -> str | None:
    """Why there are no kernel probes; None if there are."""
    if os.uname().machine not in _SYSCALL:
        return f"not for {os.uname().machine} yet"
    try:
        tracing()
    except EnvironmentFault as fault:
        return str(fault)
    return None


def room() -> int:
    """What a return probe is to have room for. UsageError if `ROOM_VARIABLE` says nonsense."""
    said = os.environ.get(ROOM_VARIABLE, str(ROOM))
    if not said.isdecimal() or not 1 <= int(said) <= ROOM:
        raise UsageError(f"{ROOM_VARIABLE}={said} is no room for calls: use a number from 1 to {ROOM}, or leave it out")
    return int(said)


class Probes:
    """All probes of one process; `close` removes them."""

    def __init__(self) -> None:
        """EnvironmentFault if there are no probes."""
        self._tracing = tracing()
        self._room = room()
        self._group = f"{_PREFIX}{os.getpid()}"
        self._number = next(_numbers)
        self._attached: list[str] = []
        self._descriptors: list[int] = []
        self._remove_leftovers()

    def attach(self, probe: Probe, program: int) -> None:
        """Have `program` called there. OSError if the kernel refuses."""
        kind = f"r{self._room}" if probe.returns else "p"
        # what tracefs counts is told by name alone, without the group; a function's entry may be probed twice
        name = f"{kind[0]}{self._number}_{len(self._attached)}_{os.getpid()}_{probe.function}"[:_LONGEST]
        self._define(f"{kind}:{self._group}/{name} {probe.function}")
        self._attached.append(name)
        number = int((self._tracing / "events" / self._group / name / "id").read_text())
        # struct perf_event_attr: type, size, config, sample_period
        attributes = ctypes.create_string_buffer(struct.pack("=IIQQ", _TYPE_TRACEPOINT, 128, number, 1), 128)
        descriptor = _libc.syscall(_SYSCALL[os.uname().machine], attributes, -1, 0, -1, _CLOEXEC)
        if descriptor < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), probe.function)
        self._descriptors.append(descriptor)
        fcntl.ioctl(descriptor, _IOC_SET_BPF, program)
        fcntl.ioctl(descriptor, _IOC_ENABLE, 0)

    def missed(self) -> int:
        """Calls that the kernel could not probe, of all probes since they were attached."""
        total = 0
        names = set(self._attached)
        for line in (self._tracing / "kprobe_profile").read_text().splitlines():
            name, _, misses = line.split()
            if name in names:
                total += int(misses)
        return total

    def close(self) -> None:
        """Detach and remove all. May be called twice."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        for name in self._attached:
            with contextlib.suppress(OSError):
                self._define(f"-:{self._group}/{name}")
        self._attached = []

    def _define(self, line: str) -> None:
        descriptor = os.open(self._tracing / "kprobe_events", os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)

    def _remove_leftovers(self) -> None:
        """The definitions of processes that are no more."""
        for line in (self._tracing / "kprobe_events").read_text().splitlines():
            group, _, name = line.split()[0].partition(":")[2].partition("/")
            owner = group.removeprefix(_PREFIX)
            if group == owner or not owner.isdigit() or _alive(int(owner)):
                continue
            with contextlib.suppress(OSError):
                self._define(f"-:{group}/{name}")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as fault:
        return fault.errno != errno.ESRCH
    return True

"""Kernel probes (kprobes) for BPF programs, by way of tracefs, which counts what they miss.

Takes functions and programs; attaches, counts misses, removes. A return probe has room for so many calls at a time
(`ROOM`); calls beyond that are missed, and counted by the kernel. A program is attached by a link, which can be kept
when the process ends, where the kernel has that (5.15). The definitions in tracefs carry this process's number: those
of a process that is no more are removed by the next one that starts, unless something that was kept has them in use.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from replicator.capture import bpf
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
_PATIENCE: Final = 5.0
"""Seconds that the kernel may take to let go of an event whose link was removed."""

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
    """All probes of one sensor; `close` removes those that are not kept."""

    def __init__(self) -> None:
        """EnvironmentFault if there are no probes."""
        self._tracing = tracing()
        self._room = room()
        self._group = f"{_PREFIX}{os.getpid()}"
        # what tracefs counts is told by name alone, without the group, and numbers of processes come again
        self._token = secrets.token_hex(4)
        self._attached: list[str] = []
        self._descriptors: list[int] = []
        self._remove_leftovers()

    @property
    def events(self) -> tuple[str, ...]:
        """What tracefs calls them: group and name, with a slash between."""
        return tuple(self._attached)

    def attach(self, probe: Probe, program: int) -> int | None:
        """Have `program` called there. OSError if the kernel refuses.

        Gives the link's descriptor, which is the caller's, and lives as long as that or its name in bpffs; None where
        the kernel has no such links: then the program is called until `close`.
        """
        kind = f"r{self._room}" if probe.returns else "p"
        # a function's entry may be probed twice
        name = f"{kind[0]}{len(self._attached)}_{self._token}_{probe.function}"[:_LONGEST]
        event = f"{self._group}/{name}"
        _define(self._tracing, f"{kind}:{event} {probe.function}")
        self._attached.append(event)
        number = int((self._tracing / "events" / event / "id").read_text())
        # struct perf_event_attr: type, size, config, sample_period
        attributes = ctypes.create_string_buffer(struct.pack("=IIQQ", _TYPE_TRACEPOINT, 128, number, 1), 128)
        descriptor = _libc.syscall(_SYSCALL[os.uname().machine], attributes, -1, 0, -1, _CLOEXEC)
        if descriptor < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), probe.function)
        try:
            link = bpf.link_event(program, descriptor)
        except OSError as fault:
            if fault.errno != errno.EINVAL:
                os.close(descriptor)
                raise
            self._descriptors.append(descriptor)
            fcntl.ioctl(descriptor, _IOC_SET_BPF, program)
            fcntl.ioctl(descriptor, _IOC_ENABLE, 0)
            return None
        try:
            fcntl.ioctl(descriptor, _IOC_ENABLE, 0)
        except OSError:
            os.close(link)
            raise
        finally:
            os.close(descriptor)  # the link has it
        return link

    def adopt(self, events: Iterable[str]) -> None:
        """Count for these, too: they were attached by another process, and kept."""
        self._attached += events

    def missed(self) -> int:
        """Calls that the kernel could not probe, of all probes since they were attached."""
        total = 0
        names = {event.partition("/")[2] for event in self._attached}
        for line in (self._tracing / "kprobe_profile").read_text().splitlines():
            name, _, misses = line.split()
            if name in names:
                total += int(misses)
        return total

    def close(self) -> None:
        """Detach and remove all that no link has. May be called twice."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        for event in self._attached:
            with contextlib.suppress(OSError):
                _define(self._tracing, f"-:{event}")
        self._attached = []

    def _remove_leftovers(self) -> None:
        """The definitions of processes that are no more."""
        for event in _defined(self._tracing):
            owner = event.partition("/")[0].removeprefix(_PREFIX)
            if owner.isdigit() and not _alive(int(owner)):
                with contextlib.suppress(OSError):
                    _define(self._tracing, f"-:{event}")


def remove_events(events: Iterable[str]) -> None:
    """Remove definitions whose links were removed just now. EnvironmentFault if one stays in use."""
    wanted = set(events)
    if not wanted:
        return
    place, deadline = tracing(), time.monotonic() + _PATIENCE
    while left := wanted & set(_defined(place)):
        for event in left:
            try:
                _define(place, f"-:{event}")
            except OSError as fault:
                if time.monotonic() > deadline:
                    raise EnvironmentFault(
                        f"the kernel probe {event} cannot be removed: {fault.strerror}; end what uses it, and try again"
                    ) from fault
                time.sleep(0.02)


def _defined(place: Path) -> list[str]:
    """Our definitions, of all processes: group and name, with a slash between."""
    events = (line.split()[0].partition(":")[2] for line in (place / "kprobe_events").read_text().splitlines())
    return [event for event in events if event.startswith(_PREFIX)]


def _define(place: Path, line: str) -> None:
    descriptor = os.open(place / "kprobe_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as fault:
        return fault.errno != errno.ESRCH
    return True

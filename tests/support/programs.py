"""BPF programs as the kernel lists them, and programs of the tests' own.

Takes names of functions and processes; gives what bpf(2) tells, and takes up room on a function. Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from replicator.capture import bpf
from replicator.capture.compile import kernel_types

_SYSCALL = {"x86_64": 321, "aarch64": 280}
_INFO_BY_FD = 15
_PROGRAM_NAME_AT, _MAP_NAME_AT, _MISSES_AT = 64, 24, 208
_KINDS: dict[str, tuple[int, int, int | None]] = {
    "prog": (11, 13, _PROGRAM_NAME_AT),
    "map": (12, 14, _MAP_NAME_AT),
    "link": (31, 30, None),
}
"""By kind: the commands that give the next number, and a descriptor for one; where in what is told the name is."""
_INFO = 256
_libc = ctypes.CDLL(None, use_errno=True)

MOST = 100
"""More programs than the kernel takes on one function."""


class Entry(NamedTuple):
    """A program, a map or a link."""

    id: int
    type: int
    name: str
    misses: int
    """Times that a program was not run, because it was running already."""


def listed(kind: str) -> list[Entry]:
    """All of the kernel's; `kind` is "prog", "map" or "link"."""
    following, by_id, name_at = _KINDS[kind]
    found: list[Entry] = []
    number = 0
    while True:
        attributes = ctypes.create_string_buffer(struct.pack("=III", number, 0, 0), 12)
        if _call(following, attributes) < 0:
            if ctypes.get_errno() != errno.ENOENT:
                raise OSError(ctypes.get_errno(), f"cannot list each {kind}")
            return found
        number = int(struct.unpack_from("=I", attributes, 4)[0])
        descriptor = _call(by_id, ctypes.create_string_buffer(struct.pack("=III", number, 0, 0), 12))
        if descriptor >= 0:  # it may have gone meanwhile
            try:
                found.append(_entry(descriptor, name_at))
            finally:
                os.close(descriptor)


def map_by_id(id: int) -> int:
    """A descriptor of a map."""
    return _call(_KINDS["map"][1], ctypes.create_string_buffer(struct.pack("=III", id, 0, 0), 12))


def skipped(function: str) -> list[int]:
    """How often each of the sensors' programs on a function was not run, because it was running already."""
    name = f"rsyncfs_{function}"[:15]
    return [program.misses for program in listed("prog") if program.name == name]


def maps_of(process: int) -> list[Entry]:
    """The maps that a process has open."""
    ids: set[int] = set()
    for place in Path(f"/proc/{process}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            ids |= {int(id) for id in re.findall(r"(?m)^map_id:\s+(\d+)$", place.read_text())}
    return [entry for entry in listed("map") if entry.id in ids]


def _entry(descriptor: int, name_at: int | None) -> Entry:
    """From `struct bpf_prog_info`, `bpf_map_info` or `bpf_link_info` (linux/bpf.h): what a kernel lacks is 0."""
    info = ctypes.create_string_buffer(_INFO)
    attributes = struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info))
    if _call(_INFO_BY_FD, ctypes.create_string_buffer(attributes, len(attributes))) < 0:
        raise OSError(ctypes.get_errno(), "cannot ask the kernel about a program, map or link")
    kind, number = struct.unpack_from("=II", info)
    name = "" if name_at is None else info.raw[name_at : name_at + 16].partition(b"\0")[0].decode()
    misses = int(struct.unpack_from("=Q", info, _MISSES_AT)[0]) if name_at == _PROGRAM_NAME_AT else 0
    return Entry(number, kind, name, misses)


def _call(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    """bpf(2), which may write to the attributes."""
    return int(_libc.syscall(_SYSCALL[os.uname().machine], command, attributes, len(attributes)))


@contextlib.contextmanager
def crowded(function: str, module: str = "") -> Iterator[None]:
    """A function that has so many programs that no further one can be attached; `module` is the one that it is in."""
    there = kernel_types((module,) if module else ()).function(function)
    assert there is not None, f"this kernel has no {function}"
    kept = [bpf.module_types(there.module)] if there.module else []
    try:
        for _ in range(MOST):
            program = bpf.load_program(
                bpf.PROGRAM_TRACING,
                bpf.RETURN_ZERO,
                "rsyncfs_crowd",
                attach=bpf.FEXIT,
                function=there.id,
                module=kept[0] if there.module else 0,
            )
            kept.append(program)
            try:
                kept.append(bpf.attach_program(program))
            except OSError as fault:
                assert fault.errno == errno.E2BIG, fault
                break
        else:
            raise AssertionError(f"{function} takes {MOST} programs: it cannot be crowded")
        yield
    finally:
        for descriptor in reversed(kept):
            os.close(descriptor)

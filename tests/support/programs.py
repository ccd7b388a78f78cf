"""BPF programs as the kernel lists them, and programs of the tests' own.

Takes names of functions and processes; gives what bpftool tells, and takes up room on a function. Needs root.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from replicator.capture import bpf
from replicator.capture.compile import kernel_types
from tests.support.filesystems import run

MOST = 100
"""More programs than the kernel takes on one function."""


def listed(kind: str) -> list[dict[str, Any]]:
    """All of the kernel's; `kind` is "prog", "map" or "link"."""
    found: list[dict[str, Any]] = json.loads(run("bpftool", "--json", kind, "show") or "[]")
    return found


def skipped(function: str) -> list[int]:
    """How often each of the sensors' programs on a function was not run, because it was running already."""
    name = f"rsyncfs_{function}"[:15]
    return [program.get("recursion_misses", 0) for program in listed("prog") if program.get("name") == name]


def maps_of(process: int) -> list[dict[str, Any]]:
    """The maps that a process has open."""
    ids: set[int] = set()
    for place in Path(f"/proc/{process}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            ids |= {int(id) for id in re.findall(r"(?m)^map_id:\s+(\d+)$", place.read_text())}
    return [entry for entry in listed("map") if entry["id"] in ids]


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

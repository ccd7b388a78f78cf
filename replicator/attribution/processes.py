"""What a process is called, while it runs.

Takes the number of a process; gives the name of its first thread, as `ps` shows it. Knows nothing of those that ended.
"""

from __future__ import annotations

from pathlib import Path

from replicator.observe.log import printable

UNKNOWN = "?"
"""Shown for a process whose name is not known."""


def command_of(pid: int) -> str | None:
    """The name, printable; None if there is no such process now."""
    try:
        return printable(Path(f"/proc/{pid}/comm").read_bytes().rstrip(b"\n"))
    except OSError:
        return None

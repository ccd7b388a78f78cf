"""Durations and sizes as people write them on a command line: 90s, 15min, 1h 30min, 7d; 4096, 20M, 1GiB.

Durations are in systemd's syntax, a number without a unit being seconds; sizes count in powers of 1024.
"""

from __future__ import annotations

import re

from replicator.errors import UsageError

_SECONDS = {
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86_400.0),
    **dict.fromkeys(("w", "week", "weeks"), 604_800.0),
}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)")
_SIZE = re.compile(r"\s*(\d+)\s*([KMGT]?)(?:iB|B)?\s*")
_LONGEST = 10 * 365 * 86_400.0


def duration(option: str, text: str) -> float:
    """Seconds, more than 0. UsageError, naming the option, for anything else."""
    seconds, at = 0.0, 0
    while at < len(text.rstrip()):
        part = _DURATION.match(text, at)
        if part is None or part[2] not in _SECONDS:
            raise UsageError(f"{option} takes a duration such as 90s, 15min, 24h or 7d, not {text!r}")
        seconds += float(part[1]) * _SECONDS[part[2]]
        at = part.end()
    if not 0 < seconds <= _LONGEST:
        raise UsageError(f"{option} takes a duration above 0 and below ten years, such as 24h or 7d, not {text!r}")
    return seconds


def size(option: str, text: str) -> int:
    """Bytes, at least 1. UsageError, naming the option, for anything else."""
    found = _SIZE.fullmatch(text)
    if found is None or not int(found[1]):
        raise UsageError(f"{option} takes a number of bytes such as 4096, 20M or 1G, not {text!r}")
    return int(found[1]) << 10 * " KMGT".index(found[2] or " ")

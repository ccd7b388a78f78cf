"""Logs on stderr: lines for people, priorities for the journal, or JSON objects for machines.

Takes the standard library's log records, gives one line each. File names are bytes that anybody may have chosen:
control characters are escaped, so that no name can forge a line. A stderr that is closed or full loses the line and
nothing else. It does not promise to write elsewhere.

    RSYNCFS_LOG=plain|json      the form (plain)
    RSYNCFS_LOG_LEVEL=debug|info|warning|error      the least that is written (info)
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TextIO

import orjson

from replicator.errors import UsageError

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str | bytes | os.PathLike[str]) -> str:
    """A name or path as one line that any terminal and any JSON reader can take.

    Control characters, line separators and bytes that are not UTF-8 become escapes such as \\x0a.
    """
    return _CONTROL.sub(_escape, os.fsdecode(text))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # how a byte that is no UTF-8 comes out of os.fsdecode
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Seldom:
    """Keeps what happens thousands of times from flooding the log: it is told once in a while, with its count."""

    def __init__(self, seconds: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._untold = 0
        self._next = -math.inf

    def count(self, number: int) -> int:
        """Note `number` more; how many to tell of now, 0 if none or too soon."""
        self._untold += number
        if not number or self._clock() < self._next:
            return 0
        self._next = self._clock() + self._seconds
        told, self._untold = self._untold, 0
        return told


def configure(environment: Mapping[str, str] = os.environ, stream: TextIO | None = None) -> None:
    """Send all logs to `stream` (stderr) in the form that the environment asks for. UsageError if it asks nonsense.

    Where stderr is the journal's, lines carry the priority and no time: the journal has its own.
    """
    form = environment.get("RSYNCFS_LOG", "plain")
    level = environment.get("RSYNCFS_LOG_LEVEL", "info").lower()
    if form not in ("plain", "json"):
        raise UsageError(f"RSYNCFS_LOG={printable(form)} is not a form of logs: use plain or json")
    if level not in _LEVELS:
        raise UsageError(f"RSYNCFS_LOG_LEVEL={printable(level)} is not a level: use debug, info, warning or error")
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(PlainFormatter(journal=_is_journal(stream, environment.get("JOURNAL_STREAM", ""))))
    # A line that cannot be written must not become a traceback, which could not be written either.
    logging.raiseExceptions = False
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)  # other libraries: what they warn of
    logging.getLogger("replicator").setLevel(_LEVELS[level])


class PlainFormatter(logging.Formatter):
    """`2026-01-02T03:04:05.678Z WARNING link.session: message key=value`, or `<4>link.session: ...` for the journal."""

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback, if the record has one, follows in lines of its own."""
        where = record.name.removeprefix("replicator.")
        extra = "".join(f" {key}={_value(value)}" for key, value in _extras(record).items())
        if self._journal:
            start = f"<{_PRIORITY.get(record.levelno, 6)}>"
        else:
            start = f"{_time(record)} {record.levelname} "
        line = f"{start}{where}: {printable(record.getMessage())}{extra}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, what was passed as `extra`, and the traceback, if any."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without a line break in it."""
        told: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        told |= {printable(key): _plain(value) for key, value in _extras(record).items()}
        if record.exc_info:
            # Source lines and messages of others may hold what JSON cannot.
            told["traceback"] = [printable(line) for line in self.formatException(record.exc_info).splitlines()]
        return orjson.dumps(told, default=lambda value: printable(str(value))).decode()


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _plain(value: object) -> object:
    if isinstance(value, str | bytes | os.PathLike):
        return printable(value)
    if isinstance(value, bool | float) or value is None or (isinstance(value, int) and -(2**63) <= value < 2**64):
        return value
    return printable(str(value))


def _value(value: object) -> str:
    text = str(_plain(value))
    return f'"{text}"' if " " in text or not text else text


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _is_journal(stream: TextIO, journal_stream: str) -> bool:
    """Whether the stream is the one that systemd connected to the journal (JOURNAL_STREAM is device:inode)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return journal_stream == f"{status.st_dev}:{status.st_ino}"

"""The state directory of one process: a lock, and a small record of who it is.

Takes a path; holds the directory locked until it is closed, so that no second process uses it. The record is written
by temporary file, fsync, rename and fsync of the directory: it is the old one or the new one, never half of one.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import orjson

from replicator.errors import EnvironmentFault

_RECORD = "identity.json"


@dataclass(slots=True)
class Identity:
    """Who a sender is, and which replica it has spoken to."""

    source: str
    replica: str | None = None


class StateDirectory:
    """A locked state directory."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def open(cls, path: Path) -> Self:
        """Make it if need be, and lock it. EnvironmentFault if it cannot be had."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise EnvironmentFault(
                f"cannot use the state directory {path}: {error.strerror}; choose another with --state, or run as root"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise EnvironmentFault(
                f"the state directory {path} is in use by another rsyncfs: stop that one, or give each its own --state"
            ) from None
        return cls(path, fd)

    def identity(self) -> Identity:
        """The record; made on first use. EnvironmentFault if it cannot be read or written."""
        record = self.path / _RECORD
        try:
            data = orjson.loads(record.read_bytes())
            return Identity(str(data["source"]), data.get("replica"))
        except FileNotFoundError:
            identity = Identity(str(uuid.uuid4()))
            self.write(identity)
            return identity
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EnvironmentFault(
                f"cannot read {record}: {error}; remove it to start anew (the replica will be compared, with --adopt)"
            ) from error

    def write(self, identity: Identity) -> None:
        """Replace the record. EnvironmentFault if the disk does not take it."""
        record = self.path / _RECORD
        temporary = record.with_suffix(".new")
        try:
            with temporary.open("wb") as file:
                file.write(orjson.dumps({"source": identity.source, "replica": identity.replica}))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(record)
            os.fsync(self._fd)
        except OSError as error:
            raise EnvironmentFault(f"cannot write {record}: {error.strerror}; free space there") from error

    def close(self) -> None:
        """Unlock."""
        os.close(self._fd)

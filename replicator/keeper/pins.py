"""What the sender of one state directory has pinned in bpffs, so that it goes on without a process: one set.

Takes the state directory; gives its set to one process at a time. A set is whole when it has its signature, which is
pinned last and removed first: what a process that was killed had half made or half removed is never taken for whole.
A set knows its state directory. When that is gone, nobody would come for it: whoever opens a set removes such others.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import xxhash

from replicator import syscalls
from replicator.capture import bpf
from replicator.keeper.bpffs import MOUNT, NotKept, locked, mounted, sets

_log = logging.getLogger(__name__)

_STATE: Final = "state"  # a symbolic link to the state directory
_SIGNATURE: Final = "signature"
_LENGTH: Final = 8
_KEY_SIZE: Final = 4


class Busy(Exception):
    """Another process has the set."""


class Pins:
    """The set of one state directory, ours until `close`."""

    def __init__(self, path: Path, descriptor: int, state: str) -> None:
        self.path = path
        self.state = state
        """Which state directory it is: one that was made anew in the same place is another."""
        self._descriptor = descriptor

    @classmethod
    def open(cls, state: Path) -> Self:
        """Take the set of an existing state directory, which may be empty. NotKept; Busy."""
        try:
            directory = sets()
            with locked(directory):
                _sweep(directory)
                path = directory / key_of(state)
                path.mkdir(mode=0o700, exist_ok=True)
                descriptor = _take(path)
                try:
                    made = cls(path, descriptor, _identity(state))
                    if not os.path.lexists(path / _STATE):
                        (path / _STATE).symlink_to(os.path.realpath(state))
                except BaseException:
                    os.close(descriptor)
                    raise
                return made
        except OSError as error:
            raise NotKept(f"bpffs refuses it ({error})") from error

    def signature(self) -> bytes | None:
        """That of a whole set; None if it is not whole."""
        try:
            descriptor = self.get(_SIGNATURE)
        except OSError:
            return None
        try:
            length = int.from_bytes(_read(descriptor, 0, _LENGTH), "little")
            return _read(descriptor, _LENGTH, length)
        finally:
            os.close(descriptor)

    def sign(self, signature: bytes) -> None:
        """Say that everything is pinned, or pinned anew. OSError."""
        value = len(signature).to_bytes(_LENGTH, "little") + signature
        size = len(value) + -len(value) % 8
        descriptor = bpf.create_map(bpf.MAP_ARRAY, _KEY_SIZE, size, 1, bpf.MMAPABLE, "rsyncfs_sign")
        try:
            # In memory: while bpf(2) writes to a map, probes on this processor see nothing.
            with mmap.mmap(descriptor, size) as memory:
                memory[: len(value)] = value
            new = self.path / f"{_SIGNATURE}_new"
            new.unlink(missing_ok=True)
            bpf.pin(descriptor, new)
            new.rename(self.path / _SIGNATURE)
        finally:
            os.close(descriptor)

    def unsign(self) -> None:
        """Say that this is no whole set any more. OSError."""
        (self.path / _SIGNATURE).unlink(missing_ok=True)

    def pin(self, name: str, descriptor: int) -> None:
        """Keep a map, program or link. OSError."""
        bpf.pin(descriptor, self.path / name)

    def get(self, name: str) -> int:
        """A descriptor of what was pinned. OSError."""
        return bpf.pinned(self.path / name)

    def clear(self) -> None:
        """Remove everything that is pinned: hooks that no process has are detached. OSError."""
        _clear(self.path)

    def remove(self) -> None:
        """The same, and the set itself. OSError."""
        _remove(self.path)

    def close(self) -> None:
        """Leave it to the next one. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def key_of(state: Path) -> str:
    """The name of a state directory's set."""
    return xxhash.xxh3_128_hexdigest(os.fsencode(os.path.realpath(state)))


@contextlib.contextmanager
def left_behind(state: Path) -> Iterator[Pins | None]:
    """The set of a state directory that may be gone; None if there is none. Makes nothing. Busy."""
    path = MOUNT / "rsyncfs" / key_of(state)
    if not mounted() or not path.is_dir():
        yield None
        return
    pins = Pins(path, _take(path), "")
    try:
        yield pins
    finally:
        pins.close()


def _identity(state: Path) -> str:
    status = syscalls.statx(syscalls.AT_FDCWD, os.fsencode(state), 0, syscalls.STATX_BASIC_STATS | syscalls.STATX_BTIME)
    return f"{os.path.realpath(state)} {os.stat(state).st_dev} {status.ino} {status.btime_ns}"


def _take(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Busy(f"another process has the hooks in {path}") from None
    return descriptor


def _read(descriptor: int, at: int, length: int) -> bytes:
    """Bytes of a signature."""
    with mmap.mmap(descriptor, at + length, prot=mmap.PROT_READ) as memory:
        return memory[at : at + length]


def _clear(path: Path) -> None:
    names = [name for name in os.listdir(path) if name != _STATE]
    # The signature first; then links, so that nothing calls programs whose maps are gone from here.
    for name in sorted(names, key=lambda name: (not name.startswith(_SIGNATURE), not name.startswith("link"), name)):
        (path / name).unlink()


def _remove(path: Path) -> None:
    _clear(path)
    (path / _STATE).unlink(missing_ok=True)
    path.rmdir()


def _sweep(directory: Path) -> None:
    """Remove the sets whose state directories are gone, and those that know of none."""
    for path in directory.iterdir():
        state = path / _STATE
        if os.path.lexists(state) and state.is_dir():
            continue
        with contextlib.suppress(Busy, OSError):
            descriptor = _take(path)
            try:
                _remove(path)
                _log.info("removed the hooks of a sender whose state directory is gone: %s", path)
            finally:
                os.close(descriptor)

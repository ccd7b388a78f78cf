"""The C helpers of the tests (tests/helpers_c), built when first used.

Takes a helper's name, gives the path of its program, built with gcc into a directory of this run; the build's
errors are an AssertionError. The environment variable RSYNCFS_TEST_HELPERS names a directory that has them all already.
`Mapper` drives the one that stays alive.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.deadline import SLOW

SOURCES = Path(__file__).resolve().parents[1] / "helpers_c"
LIBRARIES = {
    "uring_write": ["-luring"],
    "aio_write": ["-laio"],
    **{name: ["-pthread"] for name in ("writers", "hammer", "contend")},
}


@functools.cache
def _directory() -> Path:
    path = Path(tempfile.mkdtemp(prefix="rsyncfs-helpers-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def helper(name: str) -> Path:
    """The program made of tests/helpers_c/`name`.c."""
    ready = os.environ.get("RSYNCFS_TEST_HELPERS")
    return Path(ready) / name if ready else build(name, _directory())


def build_all(directory: Path) -> None:
    """Build every helper into `directory`, which is made if missing."""
    directory.mkdir(parents=True, exist_ok=True)
    for source in SOURCES.glob("*.c"):
        build(source.stem, directory)


def build(name: str, directory: Path) -> Path:
    """Build one helper."""
    program = directory / name
    command: list[str | Path] = [
        "gcc",
        "-O2",
        "-Wall",
        "-Werror",
        "-o",
        program,
        SOURCES / f"{name}.c",
        *LIBRARIES.get(name, []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def call(name: str, *words: object) -> str:
    """Run a helper to its end; what it printed. AssertionError with its own words if it fails."""
    done = subprocess.run(
        [helper(name), *map(str, words)], capture_output=True, text=True, check=False, timeout=120 * SLOW
    )
    assert done.returncode == 0, f"{name} {words}: {done.stderr}"
    return done.stdout


class Mapper:
    """A process that holds a file open and mapped; a context manager."""

    def __init__(self, file: Path) -> None:
        self._process = subprocess.Popen(
            [helper("mapper"), file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def _tell(self, *words: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().split()
        if answer[:1] == ["error"]:
            raise OSError(int(answer[1]), f"mapper: {words}")
        assert answer == ["ok"], (words, answer)

    def map(self, offset: int, length: int) -> None:
        """Map a range, shared and writable."""
        self._tell("map", offset, length)

    def store(self, offset: int, length: int, byte: int) -> None:
        """Store through the mapping; `offset` is the file's."""
        self._tell("store", offset, length, byte)

    def write(self, offset: int, length: int, byte: int) -> None:
        """pwrite through the same descriptor."""
        self._tell("write", offset, length, byte)

    def msync(self) -> None:
        """MS_SYNC the whole mapping."""
        self._tell("msync")

    def munmap(self) -> None:
        """Unmap it."""
        self._tell("munmap")

    def close(self) -> None:
        """Close the descriptor; the process lives on."""
        self._tell("close")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10 * SLOW)
        self._process.stdout.close()

"""Random changes of one file, in all the ways that a filesystem offers; the same ones for the same seed.

Takes a file and a donor of at least 256 KiB; each turn of the generator has made one change and names it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import syscalls
from tests.support.operations import BLOCK, KIB, opened

REFLINK = frozenset({"xfs", "btrfs"})

LIMIT = 2048 * KIB
"""No change reaches further."""

Way = Callable[[int, int, int], object]
"""Changes the file that is open at a descriptor, from an offset on, in a length."""

SHRINKING = frozenset({"ftruncate", "truncate"})
"""Ways after which a store through somebody's mapping may be beyond the end."""
MAPPING = frozenset({"store"})


def ways(file: Path, donor: Path, fstype: str, dice: random.Random) -> dict[str, Way]:
    """What can be done to `file`, which the caller has open; sizes and contents come from `dice`."""
    found: dict[str, Way] = {
        "pwrite": lambda fd, at, length: os.pwrite(fd, dice.randbytes(length), at),
        "write": lambda fd, at, length: (os.lseek(fd, at, os.SEEK_SET), os.write(fd, dice.randbytes(length))),
        "pwritev": lambda fd, at, length: os.pwritev(fd, [dice.randbytes(length), b"tail"], at),
        "append": lambda fd, at, length: _append(file, dice.randbytes(length % 9_000)),
        "ftruncate": lambda fd, at, length: os.ftruncate(fd, at),
        "truncate": lambda fd, at, length: os.truncate(file, at),
        "allocate": lambda fd, at, length: syscalls.fallocate(fd, 0, at, length),
        "allocate_keep": lambda fd, at, length: syscalls.fallocate(fd, syscalls.KEEP_SIZE, at, length),
        "punch": lambda fd, at, length: syscalls.fallocate(fd, syscalls.PUNCH_HOLE | syscalls.KEEP_SIZE, at, length),
        "copy": lambda fd, at, length: _copy(fd, donor, at, min(length, 100 * KIB)),
        "fsync": lambda fd, at, length: os.fsync(fd),
    }
    if fstype != "tmpfs":
        found |= {
            "zero": lambda fd, at, length: syscalls.fallocate(fd, syscalls.ZERO_RANGE, at, length),
            "zero_keep": lambda fd, at, length: syscalls.fallocate(
                fd, syscalls.ZERO_RANGE | syscalls.KEEP_SIZE, at, length
            ),
            "store": lambda fd, at, length: _store(fd, at, dice.randbytes(min(length, 9_000))),
        }
    if fstype in REFLINK:
        found["clone"] = lambda fd, at, length: _clone(fd, donor, at // BLOCK * BLOCK, (length // BLOCK or 1) * BLOCK)
    return found


def place(dice: random.Random) -> tuple[int, int]:
    """An offset and a length within `LIMIT`."""
    return (
        dice.randrange(LIMIT - 256 * KIB),
        dice.choice((1, 100, 4_095, 5_000, 60_000, dice.randrange(1, 200_000))),
    )


def storm(file: Path, donor: Path, fstype: str, seed: int, turns: int) -> Iterator[str]:
    """Make `turns` changes."""
    dice = random.Random(seed)
    table = ways(file, donor, fstype, dice)
    with opened(file) as fd:
        for turn in range(turns):
            way = dice.choice(list(table))
            at, length = place(dice)
            table[way](fd, at, length)
            yield f"seed {seed}, turn {turn}: {way} at {at}, {length} bytes"


def _append(file: Path, data: bytes) -> None:
    with opened(file, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, data)


def _copy(fd: int, donor: Path, at: int, length: int) -> None:
    with opened(donor) as source:
        os.copy_file_range(source, fd, length, at % (100 * KIB), at)


def _clone(fd: int, donor: Path, at: int, length: int) -> None:
    with opened(donor) as source:
        syscalls.clone_range(fd, source, 0, min(length, 256 * KIB), at)


def _store(fd: int, at: int, data: bytes) -> None:
    size = os.fstat(fd).st_size
    with contextlib.ExitStack() as stack:
        if at + len(data) > size:
            return
        mapping = stack.enter_context(mmap.mmap(fd, size))
        mapping[at : at + len(data)] = data

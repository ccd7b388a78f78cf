"""What changes bytes: every row of the table of write paths, and random ranges in every way that there is.

Rows get the file through a descriptor of this process, so that they hit the file that was chosen whoever renames it
meanwhile; those that are about names get its path. `one_long_write` is left out, for it is larger than the room.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from random import Random

from tests.support import storm
from tests.support.operations import Operation, Scene, Unsupported, content, operations, prepare
from tests.workload.action import action, enter
from tests.workload.field import LONG, Field, grow

LEFT_OUT = frozenset({"one_long_write"})
BY_PATH = frozenset({"unnamed_file_then_link", "write_on_after_rename", "write_on_after_unlink"})
AT_HOME = frozenset({"write_in_another_mount_namespace", "write_through_a_bind_mount"})
"""These start programs that are given paths: they work where nobody else does."""
SHRINKING = frozenset(
    {
        *("collapse_range", "ftruncate_up", "ftruncate_down", "truncate", "open_with_truncation", "store_and_grow"),
        *("truncate_down_then_extend", "truncate_down_then_write_far"),
    }
)
"""Rows after which a file may be shorter than it was, whatever its size."""
PROGRAMS = ("io_uring", "libaio", "store", "append_from", "two_threads", "write_in", "write_through", "write_beyond")
"""Dearer than the others."""


def _row(row: Operation, field: Field, dice: Random) -> None:
    if row.mapped and field.fstype == "tmpfs":
        raise Unsupported(row.name)
    if row.name in AT_HOME:
        field.home.mkdir(exist_ok=True)
        _take(row, prepare(field.home, row.size))
        return
    with field.opened(dice, shrinks=row.name in SHRINKING, maps=row.mapped) as (path, fd):
        grow(fd, row.size)
        file = path if row.name in BY_PATH else Path(f"/proc/{os.getpid()}/fd/{fd}")
        _take(row, Scene(file, field.donor, row.size))


def _take(row: Operation, scene: Scene) -> None:
    for _ in row.run(scene):
        pass


for _operation in operations:
    if _operation.name not in LEFT_OUT:
        enter(_operation.name, "bytes", partial(_row, _operation), 0.1 if _operation.name.startswith(PROGRAMS) else 0.4)


def _random_range(way: str, field: Field, dice: Random) -> None:
    with field.opened(dice, shrinks=way in storm.SHRINKING, maps=way in storm.MAPPING) as (_, fd):
        table = storm.ways(Path(f"/proc/self/fd/{fd}"), field.donor, field.fstype, dice)
        if way not in table:
            raise Unsupported(way)
        table[way](fd, *storm.place(dice))


for _way in storm.ways(Path(), Path(), "xfs", Random()):
    enter(f"random_{_way}", "bytes", partial(_random_range, _way), 3.0 if "write" in _way else 1.0)


@action("bytes", 0.05)
def long_write(field: Field, dice: Random) -> None:
    with field.opened(dice) as (_, fd):
        os.pwrite(fd, content(LONG, dice.randrange(2)), 0)


@action("bytes", 8)
def small_writes(field: Field, dice: Random) -> None:
    """Many in one file, as a database makes them."""
    with field.opened(dice) as (_, fd):
        for _ in range(dice.randrange(1, 30)):
            os.pwrite(fd, dice.randbytes(dice.randrange(1, 600)), dice.randrange(200_000))


@action("bytes", 2)
def write_anew(field: Field, dice: Random) -> None:
    with field.opened(dice, shrinks=True) as (_, fd):
        os.ftruncate(fd, 0)
        os.pwrite(fd, dice.randbytes(dice.randrange(60_000)), 0)


@action("bytes", 1)
def same_bytes_again(field: Field, dice: Random) -> None:
    with field.opened(dice) as (_, fd):
        at = dice.randrange(100_000)
        os.pwrite(fd, os.pread(fd, 5_000, at), at)


@action("bytes", 1)
def write_and_hide(field: Field, dice: Random) -> None:
    """The times afterwards are those before."""
    with field.opened(dice) as (_, fd):
        info = os.fstat(fd)
        os.pwrite(fd, dice.randbytes(100), dice.randrange(max(1, info.st_size - 100)))
        os.utime(fd, ns=(info.st_atime_ns, info.st_mtime_ns))

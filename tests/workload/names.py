"""What changes names: made, moved, exchanged, linked and removed, files of each type and whole directories."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import time
from pathlib import Path
from random import Random

from tests.support import syscalls
from tests.support.operations import Unsupported, content, opened
from tests.workload.action import action
from tests.workload.field import DIRECTORIES, Field, put


def _some(dice: Random) -> bytes:
    return content(30_000, dice.randrange(8))[: dice.randrange(30_000)]


@action("names", 6)
def create(field: Field, dice: Random) -> None:
    with opened(field.fresh(dice), os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
        os.write(fd, _some(dice))


@action("names")
def create_empty(field: Field, dice: Random) -> None:
    field.fresh(dice).touch(exist_ok=False)


@action("names", 4)
def mkdir(field: Field, dice: Random) -> None:
    field.fresh(dice, DIRECTORIES).mkdir()


@action("names")
def make_a_deep_tree(field: Field, dice: Random) -> None:
    at = field.directory(dice)
    for name in dice.sample(DIRECTORIES, 3):
        at = at / name
        at.mkdir(exist_ok=True)
        put(at / "leaf", _some(dice))


@action("names")
def symlink(field: Field, dice: Random) -> None:
    field.fresh(dice).symlink_to(dice.choice(("nowhere", "../f1", "/etc/passwd", "x" * 300)))


@action("names", 0.5)
def fifo(field: Field, dice: Random) -> None:
    os.mkfifo(field.fresh(dice), dice.choice((0o600, 0o644)))


@action("names", 0.5)
def device(field: Field, dice: Random) -> None:
    kind = dice.choice((stat.S_IFCHR, stat.S_IFBLK))
    os.mknod(field.fresh(dice), kind | 0o600, os.makedev(1, dice.choice((3, 5, 8))))


@action("names", 0.5)
def socket_file(field: Field, dice: Random) -> None:
    path = field.fresh(dice)
    parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as made, contextlib.suppress(UnicodeEncodeError):
            if len(path.name) < 50:  # sun_path is short
                made.bind(f"/proc/self/fd/{parent}/{path.name}")
    finally:
        os.close(parent)


@action("names", 3)
def unlink(field: Field, dice: Random) -> None:
    field.entry(dice, lambda entry: not entry.is_dir(follow_symlinks=False)).unlink()


@action("names", 2)
def rmdir(field: Field, dice: Random) -> None:
    field.below(dice).rmdir()


@action("names", 0.3)
def remove_a_tree(field: Field, dice: Random) -> None:
    shutil.rmtree(field.below(dice), ignore_errors=True)


@action("names", 4)
def rename(field: Field, dice: Random) -> None:
    os.rename(field.entry(dice), field.fresh(dice))


@action("names", 1)
def rename_noreplace(field: Field, dice: Random) -> None:
    syscalls.renameat2(field.entry(dice), field.fresh(dice), syscalls.RENAME_NOREPLACE)


@action("names", 3)
def rename_over(field: Field, dice: Random) -> None:
    os.rename(field.file(dice), field.file(dice))


@action("names", 3)
def write_and_rename_over(field: Field, dice: Random) -> None:
    """As editors save."""
    path = field.file(dice)
    temporary = path.with_name(f".{field.number}.new")
    put(temporary, _some(dice))
    temporary.rename(path)


@action("names", 2)
def exchange(field: Field, dice: Random) -> None:
    syscalls.renameat2(field.entry(dice), field.entry(dice), syscalls.RENAME_EXCHANGE)


@action("names", 2)
def move_a_directory(field: Field, dice: Random) -> None:
    os.rename(field.below(dice), field.fresh(dice, DIRECTORIES))


@action("names", 1)
def exchange_directories(field: Field, dice: Random) -> None:
    syscalls.renameat2(field.below(dice), field.below(dice), syscalls.RENAME_EXCHANGE)


@action("names", 1)
def there_and_back(field: Field, dice: Random) -> None:
    """The names are what they were, and yet everything has moved."""
    path, parking = field.below(dice), field.live / f"parking{field.number}"
    path.rename(parking)
    parking.rename(path)


@action("names", 3)
def link(field: Field, dice: Random) -> None:
    _link(field.file(dice), field.fresh(dice))


@action("names", 1)
def link_of_no_file(field: Field, dice: Random) -> None:
    _link(
        field.entry(dice, lambda entry: not (entry.is_dir(follow_symlinks=False) or entry.is_file())), field.fresh(dice)
    )


@action("names", 2)
def link_then_unlink(field: Field, dice: Random) -> None:
    """A rename as it was before there was one."""
    old = field.file(dice)
    _link(old, field.fresh(dice))
    old.unlink()


def _link(old: Path, new: Path) -> None:
    os.link(old, new, follow_symlinks=False)


@action("names", 1)
def unnamed(field: Field, dice: Random) -> None:
    """A file that gets its name when it is full, and is written on after that name has gone again."""
    path = field.fresh(dice)
    with opened(path.parent, os.O_RDWR | os.O_TMPFILE) as fd:
        os.write(fd, _some(dice))
        syscalls.link_descriptor(fd, path)
        os.pwrite(fd, b"named", 3)
        if dice.random() < 0.5:
            other = field.fresh(dice)
            _link(path, other)
            path.unlink()
            os.pwrite(fd, b"under another name", 3)


@action("names", 1)
def write_without_a_name(field: Field, dice: Random) -> None:
    with field.opened(dice) as (path, fd):
        path.unlink()
        os.pwrite(fd, _some(dice), 0)
        os.fchmod(fd, 0o600)


@action("names", 1)
def leave_and_return(field: Field, dice: Random) -> None:
    """A file leaves the tree, is written on there, and comes back under some name, or under the old one."""
    if field.outside is None:
        raise Unsupported("leave_and_return")
    with field.opened(dice) as (path, fd):
        parking = field.outside / f"parking{field.number}"
        path.rename(parking)
        os.pwrite(fd, dice.randbytes(3_000), dice.randrange(50_000))
        parking.rename(path if dice.random() < 0.5 else field.fresh(dice))


@action("names", 0.5)
def directory_leaves_and_returns(field: Field, dice: Random) -> None:
    """A directory leaves the tree with all that is in it, longer than a look waits for it or not, over and over."""
    if field.outside is None:
        raise Unsupported("directory_leaves_and_returns")
    path, parking = field.below(dice), field.outside / f"garage{field.number}"
    for _ in range(dice.randrange(1, 4)):
        path.rename(parking)
        try:
            time.sleep(dice.choice((0, 0.01, 0.05)))  # the load, not a wait
            if dice.random() < 0.5:
                put(parking / "outside", _some(dice))
        finally:
            path = _back(field, parking, path)
        time.sleep(dice.choice((0, 0.01, 0.05)))


def _back(field: Field, parking: Path, path: Path) -> Path:
    """Another process may have taken the name, or the directory that it was in."""
    for place in (path, field.live / f"back{field.number}"):
        with contextlib.suppress(OSError):
            parking.rename(place)
            return place
    shutil.rmtree(parking)
    raise FileNotFoundError(errno.ENOENT, "there is no way back", str(path))


@action("names", 0.5)
def link_outside(field: Field, dice: Random) -> None:
    """All names in the tree go, one outside stays; written on through that, and linked back."""
    if field.outside is None:
        raise Unsupported("link_outside")
    path, kept = field.file(dice), field.outside / f"kept{field.number}"
    kept.unlink(missing_ok=True)
    _link(path, kept)
    path.unlink()
    with opened(kept, os.O_WRONLY) as fd:
        os.pwrite(fd, dice.randbytes(500), dice.randrange(9_000))
    _link(kept, field.fresh(dice))
    if dice.random() < 0.7:
        kept.unlink()


def _few(field: Field, dice: Random) -> list[Path]:
    parents = [field.directory(dice), field.directory(dice)]
    return [dice.choice(parents) / f"storm{number}" for number in range(6)]


@action("names", 0.2)
def storm_of_renames(field: Field, dice: Random) -> None:
    names = _few(field, dice)
    for path in names[:3]:
        put(path, _some(dice))
    for _ in range(60):
        with contextlib.suppress(FileNotFoundError):
            os.rename(*dice.sample(names, 2))


@action("names", 0.2)
def storm_of_links(field: Field, dice: Random) -> None:
    names = _few(field, dice)
    put(names[0], _some(dice))
    for _ in range(60):
        one, other = dice.sample(names, 2)
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            if dice.random() < 0.5:
                _link(one, other)
            else:
                one.unlink()


@action("names", 0.2)
def storm_of_exchanges(field: Field, dice: Random) -> None:
    names = _few(field, dice)
    for path in names[:4]:
        put(path, _some(dice))
    for _ in range(40):
        with contextlib.suppress(FileNotFoundError):
            one, other = dice.sample(names, 2)
            syscalls.renameat2(one, other, syscalls.RENAME_EXCHANGE)

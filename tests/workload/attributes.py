"""What changes neither bytes nor names: modes, owners, times, extended attributes, ACLs, capabilities."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from random import Random

from tests.workload.action import action
from tests.workload.field import Field

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""cap_net_bind_service, permitted and effective."""


def _acl(*entries: tuple[int, int, int]) -> bytes:
    """As the kernel takes it: version 2, then (tag, permissions, id), little-endian."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _some_acl(dice: Random) -> bytes:
    nobody = 0xFFFFFFFF
    return _acl(
        *((0x01, 7, nobody), (0x02, dice.randrange(8), 1 + dice.randrange(4)), (0x04, 5, nobody)),
        *((0x10, 7, nobody), (0x20, dice.randrange(8), nobody)),
    )


def _file_or_directory(field: Field, dice: Random) -> Path:
    return field.below(dice) if dice.random() < 0.3 else field.file(dice)


@action("attributes", 2)
def chmod(field: Field, dice: Random) -> None:
    _file_or_directory(field, dice).chmod(dice.choice((0o600, 0o644, 0o755, 0o700, 0o1777, 0o4755, 0o2750, 0)))


@action("attributes", 2)
def chown(field: Field, dice: Random) -> None:
    os.lchown(field.entry(dice), dice.randrange(4), dice.randrange(4))


@action("attributes", 2)
def utimes(field: Field, dice: Random) -> None:
    times = dice.randrange(2_000_000_000_000_000_000), dice.randrange(2_000_000_000_000_000_000)
    os.utime(field.entry(dice), ns=times, follow_symlinks=False)


@action("attributes", 2)
def set_xattr(field: Field, dice: Random) -> None:
    name = f"{dice.choice(('user', 'trusted'))}.note{dice.randrange(3)}"
    os.setxattr(_file_or_directory(field, dice), name, dice.randbytes(dice.choice((1, 20, 300))))


@action("attributes", 1)
def remove_xattr(field: Field, dice: Random) -> None:
    path = _file_or_directory(field, dice)
    names = [name for name in os.listxattr(path) if name.startswith(("user.", "trusted."))]
    if names:
        os.removexattr(path, dice.choice(names))


@action("attributes", 0.5)
def xattr_of_a_link(field: Field, dice: Random) -> None:
    link = field.entry(dice, lambda entry: entry.is_symlink())
    os.setxattr(link, "trusted.note", dice.randbytes(9), follow_symlinks=False)


@action("attributes", 1)
def access_acl(field: Field, dice: Random) -> None:
    os.setxattr(_file_or_directory(field, dice), "system.posix_acl_access", _some_acl(dice))


@action("attributes", 0.5)
def default_acl(field: Field, dice: Random) -> None:
    """New files below inherit it."""
    os.setxattr(field.below(dice), "system.posix_acl_default", _some_acl(dice))


@action("attributes", 0.5)
def remove_acl(field: Field, dice: Random) -> None:
    os.removexattr(
        _file_or_directory(field, dice), dice.choice(("system.posix_acl_access", "system.posix_acl_default"))
    )


@action("attributes", 0.5)
def capability_stripped_by_a_write(field: Field, dice: Random) -> None:
    with field.opened(dice) as (_, fd):
        os.setxattr(fd, "security.capability", CAPABILITY)
        if dice.random() < 0.7:
            os.pwrite(fd, b"x", dice.randrange(1000))

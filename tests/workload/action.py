"""The table of all that a worker can do, each row with a name, a family and a weight.

Takes functions of (field, dice) by decorators; gives `actions`. What the kernel refuses for a filesystem is
`Unsupported`, what another process has made impossible an OSError of `RACES`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.workload.field import Field

Do = Callable[[Field, Random], None]

RACES = frozenset(
    {
        errno.ENOENT,  # it went
        errno.EEXIST,  # it came
        errno.EADDRINUSE,  # the same, of a socket
        errno.ENOTEMPTY,
        errno.ENOTDIR,  # it became something else
        errno.EISDIR,
        errno.ELOOP,
        errno.ENXIO,  # a fifo, and nobody reads
        errno.ESPIPE,
        errno.EINVAL,  # a directory into itself; what is to be cut out is not there
        errno.EBUSY,
        errno.ENODATA,
        errno.ENAMETOOLONG,
        errno.ETXTBSY,
        errno.EXDEV,
        errno.EMLINK,
        errno.ENOTSUP,
        errno.EACCES,  # a default ACL of what is no directory any more
        errno.EPERM,  # a link of a directory; extended attributes of what may have none
    }
)
"""How an action may fail although nobody did wrong."""


@dataclass(frozen=True)
class Action:
    """One row."""

    name: str
    family: str
    """"bytes", "names" or "attributes"."""
    do: Do
    weight: float = 1.0


actions: dict[str, Action] = {}


def enter(name: str, family: str, do: Do, weight: float = 1.0) -> None:
    """Put a row into the table."""
    assert name not in actions, name
    actions[name] = Action(name, family, do, weight)


def action(family: str, weight: float = 1.0) -> Callable[[Do], Do]:
    """Enter a function under its own name."""

    def decorate(do: Do) -> Do:
        enter(do.__name__, family, do, weight)
        return do

    return decorate

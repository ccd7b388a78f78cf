"""What every sensor is: a source of records that say where to look.

Takes nothing; defines the protocol that the rest of the program is written against, and how a sensor speaks of what it
covers. A sensor may report more than what changed (the reader looks at the present state), never less without saying
so in `losses()` or `coverage()`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from replicator.capture.commands import Command
from replicator.capture.event import Events
from replicator.model import FileId


class Watched(Protocol):
    """The filesystem that a sensor is attached to, as a source root tells it."""

    @property
    def fstype(self) -> str:
        """As in /proc/self/mountinfo: ext4, xfs, btrfs, tmpfs."""

    @property
    def kernel_dev(self) -> int:
        """The superblock's device, major << 20 | minor of /proc/self/mountinfo (on btrfs not st_dev)."""


@dataclass(frozen=True, slots=True)
class Filesystem:
    """A plain `Watched`."""

    fstype: str
    kernel_dev: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """One way in which a file can change, and how it is seen."""

    family: str
    """The family of hooks, a file in ebpf/: inode, ext4, iomap, vfs_write, net and so on."""
    mechanism: str
    """The hook, such as "raw tracepoint ext4_da_write_end" or "fexit notify_change"."""
    covered: bool
    reason: str = ""
    """Why it is not covered; empty if it is."""
    instructions: int = 0
    """How many the kernel's verifier looked at; 0 if it was not asked, or does not say."""
    refused: bool = False
    """Whether the kernel has what was to be hooked, and did not let it happen."""


class Sensor(Protocol):
    """A source of `EVENT` records for one filesystem."""

    @property
    def tells_names(self) -> bool:
        """Whether its records tell changes of names too, and of all attributes; else fanotify must."""

    @property
    def adopted(self) -> bool:
        """Whether the hooks are those of an earlier process, and were there without interruption since.

        Then what that one had not drained, or not given back, comes first, and its losses are still told.
        """

    def attach(self, source: Watched) -> None:
        """Load and attach, or take over. What changes from now on is reported. EnvironmentFault: what is missing."""

    def fileno(self) -> int:
        """A pollable descriptor: readable while records wait. Poll it again after each `advance()`."""

    def drain(self, limit: int) -> Events | None:
        """A copy of at most `limit` next records, in ring order; None when there are none."""

    def few(self, most: int) -> tuple[list[tuple[int, ...]], bytes] | None:
        """The next records as tuples, and as bytes, if no more than `most` wait and none has a name; else None.

        For who wants nothing but speed: `drain` gives the same.
        """

    def names(self) -> list[bytes]:
        """The names of the NAME records among those of the last `drain()`, in their order."""

    def advance(self) -> None:
        """Give the drained records' space back to the kernel."""

    def produced(self) -> int:
        """Ring position behind all records submitted so far."""

    def consumed(self) -> int:
        """Ring position behind all records drained so far."""

    def fence(self) -> int:
        """Begin a new epoch; returns its number, whose low half, never 0, is what records carry.

        From the first call on, a write may be left untold if a record with the same epoch has told of the same place
        (its `epoch` is not 0). What was left untold in earlier epochs shows in whatever is read after the call.
        """

    def untold(self) -> int:
        """Writes that were left untold since this process attached."""

    def losses(self) -> dict[str, int]:
        """Totals by cause since the hooks are there. They never fall, also not from one process to the next.

        When one grew, `lost_inodes()` names the inodes; see `NAMELESS_LOSSES`.
        """

    def acknowledge(self, losses: dict[str, int]) -> None:
        """These totals have been acted on, and that is journaled. It is known to the next process, too."""

    def acknowledged(self) -> dict[str, int]:
        """The totals that were acknowledged last; zeros for new hooks. What is above them is still to be acted on."""

    def lost_inodes(self) -> list[FileId]:
        """Inodes whose records were lost and that were not forgotten: dirty as a whole.

        Take `losses()` before: who sees the total sees the inode here.
        """

    def forget_lost(self, ids: Iterable[FileId]) -> None:
        """These inodes are journaled as dirty as a whole.

        The order: `losses()`, `lost_inodes()`, mark and journal them, `forget_lost()`, `acknowledge()`, and only then
        begin to read them. An inode that loses another record before it is forgotten has no second entry, and needs
        none: the read that its mark leads to begins later and sees what that record told of. One that loses a record
        afterwards has an entry again, and a total that has grown. Were it forgotten after the read had begun, a loss in
        between would be forgotten with it. Who dies on the way finds the same inodes, or the same growth, again.
        """

    def command(self, pid: int) -> Command | None:
        """What the process of recent records is, or was, called; None if that is not known, or not kept."""

    def coverage(self) -> list[Coverage]:
        """Every hook of the families in use, whether it is attached or why not."""

    def close(self) -> None:
        """Detach and free everything but what is kept. May be called twice."""


NAMELESS_LOSSES = frozenset({"lost_map_full", "recursion", "probe_missed"})
"""Causes in `losses()` of which `lost_inodes()` cannot tell the inode: when one grew, every inode must be looked at."""

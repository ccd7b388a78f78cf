"""The naming steps as system calls, each compare-and-set.

Takes one step; the inventory follows only what has happened. SkippedError: the inventory is not as the step expects
(an earlier step failed). AstrayError: the disk is not as the inventory has it. A foreign entry in the way is swapped
out and purged, so the slot is not empty for a moment.
"""

from __future__ import annotations

import errno
import os

from replicator import syscalls
from replicator.mirror.durability import write_out
from replicator.mirror.foreign import Foreign
from replicator.mirror.ground import AstrayError, Ground, open_beneath
from replicator.mirror.inventory import Inventory
from replicator.mirror.limbo import Limbo
from replicator.mirror.steps import LIMBO, Create, Exchange, Link, Naming, Rename, Rmdir, Step, Unlink
from replicator.model import FileId, Kind, Slot


class SkippedError(Exception):
    """What this step builds upon did not happen."""


def places_of(step: Step) -> tuple[Slot, ...]:
    """The places that a step changes."""
    match step:
        case Rename(_, source, target) | Exchange(_, source, target):
            return (source, target)
        case Link(_, _, target):
            return (target,)
        case Create() | Unlink() | Rmdir():
            return (step.place,)
        case _:
            return ()


class NamingSteps:
    """Raises OSError too, as the filesystem does."""

    def __init__(self, ground: Ground, limbo: Limbo, inventory: Inventory, foreign: Foreign) -> None:
        self._ground = ground
        self._limbo = limbo
        self._inventory = inventory
        self._foreign = foreign

    def take(self, step: Naming) -> None:
        """Carry it out."""
        match step:
            case Rename(id, source, target):
                self._expect((source, id), (target, None))
                self._only_complete(id, source, target)
                self._rename(step)
            case Link(id, source, target):
                self._expect((source, id), (target, None))
                self._only_complete(id, source, target)
                self._link(step)
            case Exchange(id, source, target, other):
                self._expect((source, id), (target, other))
                self._only_complete(id, source, target)
                self._exchange(step)
            case Unlink(id, place, final):
                self._expect((place, id))
                if not final and len(self._inventory.places(id)) < 2:
                    raise SkippedError
                self._unlink(step)
            case Rmdir(id, place):
                self._expect((place, id))
                self._rmdir(step)

    def _expect(self, *expected: tuple[Slot, FileId | None]) -> None:
        for place, id in expected:
            if self._inventory.bound(place) != id:
                raise SkippedError

    def _only_complete(self, id: FileId, source: Slot, target: Slot) -> None:
        record = self._inventory.record(id)
        if source.parent == LIMBO and target.parent != LIMBO and (record is None or not record.complete):
            raise SkippedError

    def _present(self, place: Slot, id: FileId) -> None:
        if not self._ground.holds(place, id):
            raise AstrayError(id, place)

    def _rename(self, step: Rename) -> None:
        id, source, target = step.id, step.source, step.target
        if not self._ground.holds(source, id):
            if not self._ground.holds(target, id):
                raise AstrayError(id, source)
            self._inventory.take(step)
            return
        try:
            self._renameat(source, target, syscalls.RENAME_NOREPLACE)
        except FileExistsError:
            self._swap_out(id, source, target)
            self._inventory.take(step)
            self._foreign.purge_place(source)
            return
        self._inventory.take(step)

    def _link(self, step: Link) -> None:
        id, source, target = step.id, step.source, step.target
        self._present(source, id)
        try:
            self._linkat(source, target)
        except FileExistsError:
            if not self._ground.holds(target, id):
                self._limbo.ensure()
                spare = self._limbo.spare()
                self._linkat(source, spare)
                self._swap_out(id, spare, target)
                self._foreign.purge_place(spare)
        self._inventory.take(step)

    def _exchange(self, step: Exchange) -> None:
        id, source, target, other = step.id, step.source, step.target, step.other
        if not self._ground.holds(source, id):
            if self._ground.holds(target, id) and self._ground.holds(source, other):
                self._inventory.take(step)
                return
            raise AstrayError(id, source)
        if self._ground.holds(target, other):
            self._renameat(source, target, syscalls.RENAME_EXCHANGE)
            self._inventory.take(step)
            return
        # The occupant is not there: put `id` in its place all the same, then say that the other one is missing.
        if self._ground.at(target) is None:
            self._renameat(source, target, syscalls.RENAME_NOREPLACE)
        else:
            self._swap_out(id, source, target)
        self._inventory.unbind(target, keep=True)
        self._inventory.take(Rename(id, source, target))
        self._foreign.purge_place(source)
        raise AstrayError(other, target)

    def _unlink(self, step: Unlink) -> None:
        if self._ground.holds(step.place, step.id):
            os.unlink(step.place.name, dir_fd=self._ground.directory(step.place.parent))
        else:
            self._foreign.purge_place(step.place)
        self._inventory.take(step)

    def _rmdir(self, step: Rmdir) -> None:
        if next(iter(self._inventory.children(step.id)), None) is not None:
            raise SkippedError
        if self._ground.holds(step.place, step.id):
            parent = self._ground.directory(step.place.parent)
            try:
                os.rmdir(step.place.name, dir_fd=parent)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                self._foreign.empty(step.id)
                os.rmdir(step.place.name, dir_fd=self._ground.directory(step.place.parent))
        else:
            self._foreign.purge_place(step.place)
        self._ground.let_go(step.id)
        self._inventory.take(step)

    def _swap_out(self, id: FileId, source: Slot, target: Slot) -> None:
        """Exchange ours with the foreign entry at `target`, which lies at `source` then.

        That may be durable, and what somebody was promised: an epoch that a power cut undid in the inventory only.
        """
        record = self._inventory.record(id)
        if record is not None and record.kind is Kind.FILE:
            fd = open_beneath(self._ground.directory(source.parent), source.name, os.O_RDONLY | os.O_NONBLOCK)
            try:
                write_out([fd], self._ground.fstype)
            finally:
                os.close(fd)
        try:
            self._renameat(source, target, syscalls.RENAME_EXCHANGE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # One is inside the other: the foreign one leaves first.
            self._limbo.ensure()
            spare = self._limbo.spare()
            self._renameat(target, spare, syscalls.RENAME_NOREPLACE)
            self._renameat(source, target, syscalls.RENAME_NOREPLACE)
            self._foreign.purge_place(spare)

    def _renameat(self, source: Slot, target: Slot, flags: int) -> None:
        # Both directories are held open while the second one is looked up: fetching it could close the first.
        source_fd = os.dup(self._ground.directory(source.parent))
        try:
            target_fd = self._ground.directory(target.parent)
            syscalls.renameat2(source_fd, source.name, target_fd, target.name, flags)
        finally:
            os.close(source_fd)

    def _linkat(self, source: Slot, target: Slot) -> None:
        source_fd = os.dup(self._ground.directory(source.parent))
        try:
            syscalls.linkat(source_fd, source.name, self._ground.directory(target.parent), target.name)
        finally:
            os.close(source_fd)

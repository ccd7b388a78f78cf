"""New files of the replica that go straight into their places: made without a name, given one when they are whole.

Takes pairs of steps, a creation in limbo and the move of that to a place where nothing is, and does what both together
do, for many files at once and with half the system calls: an inode without any name (O_TMPFILE), its content and
attributes, one intent for all, then a name for each. What a crash leaves without a name the filesystem removes by
itself. What cannot be made this way (a filesystem without O_TMPFILE, a full disk, somebody else's file in the way) is
given back, for the steps to be taken one by one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from replicator import syscalls
from replicator.mirror import attributes
from replicator.mirror.content import Piece, write_in_place
from replicator.mirror.ground import AstrayError, Ground, handle_of
from replicator.mirror.intents import Intent, IntentLog
from replicator.mirror.inventory import Inventory
from replicator.mirror.records import after_create
from replicator.mirror.steps import LIMBO, Create, Record, Rename, Step
from replicator.model import Facts, FileId, InodeFact, Kind, Slot

TOGETHER = 128
"""Files that are open at once."""

Pair = tuple[Rename, Create]


class Brood:
    """Keeps nothing between calls."""

    def __init__(self, ground: Ground, inventory: Inventory, intents: IntentLog) -> None:
        self._ground = ground
        self._inventory = inventory
        self._intents = intents

    def of(self, facts: Facts, steps: Sequence[Step]) -> dict[FileId, Create]:
        """The creations of whole files of which the only other step is a move from limbo into the tree."""
        found: dict[FileId, Create] = {}
        if not steps or not isinstance(steps[0], Create):
            return found
        for step in steps:
            if isinstance(step, Create):
                fact = facts.inodes[step.fact]
                if fact.kind is Kind.FILE and not fact.partial:
                    found[step.id] = step
        moved: set[FileId] = set()
        for step in steps:
            if isinstance(step, Create) or step.id not in found:
                continue
            good = isinstance(step, Rename) and step.source.parent == LIMBO and step.target.parent != LIMBO
            if good and step.id not in moved:
                moved.add(step.id)
            else:
                del found[step.id]
        return {id: step for id, step in found.items() if id in moved}

    def make(self, facts: Facts, pieces: Mapping[int, list[Piece]], births: Sequence[Pair]) -> list[Pair]:
        """Make up to TOGETHER files and name them; those that could not be. Never raises OSError."""
        left: list[Pair] = []
        made: list[tuple[FileId, bytes, Record]] = []
        named: list[tuple[Pair, int]] = []
        opened: list[int] = []
        try:
            for birth in births:
                fact, target = facts.inodes[birth[1].fact], birth[0].target
                if self._inventory.record(fact.id) is not None or self._inventory.bound(target) is not None:
                    left.append(birth)  # an earlier step has failed
                    continue
                try:
                    fd = self._open(target, fact)
                    opened.append(fd)
                    handle = _fill(fd, fact, pieces.get(birth[1].fact, ()))
                except (OSError, AstrayError):
                    left.append(birth)
                    continue
                made.append((fact.id, handle, after_create(fact)))
                named.append((birth, fd))
            if not made:
                return left
            try:
                places = [rename.target for (rename, _), _ in named]
                self._intents.append(Intent(facts.epoch, places, [], made))
            except OSError:
                return list(births)
            for (birth, fd), (id, handle, record) in zip(named, made, strict=True):
                place = birth[0].target
                try:
                    syscalls.link_fd(fd, self._ground.directory(place.parent), place.name)
                except (OSError, AstrayError):
                    left.append(birth)
                    continue
                self._inventory.born(id, record, handle, place)
        finally:
            for fd in opened:
                os.close(fd)
        return left

    def _open(self, place: Slot, fact: InodeFact) -> int:
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        return os.open(b".", flags, fact.attributes.mode & 0o777, dir_fd=self._ground.directory(place.parent))


def _fill(fd: int, fact: InodeFact, pieces: Sequence[Piece]) -> bytes:
    """Content and attributes of an empty file; its handle."""
    wanted = fact.attributes
    if len(pieces) == 1 and pieces[0][0] == 0 and len(pieces[0][1]) == fact.size:
        if os.pwrite(fd, pieces[0][1], 0) != fact.size:
            write_in_place(fd, fact, pieces)
    elif fact.size:
        write_in_place(fd, fact, pieces)
    if wanted.xattrs or os.listxattr(fd):
        attributes.apply(fd, wanted)
    else:
        attributes.own(fd, wanted)
    if not fact.size:
        attributes.set_time(fd, wanted.mtime_ns)
    handle = handle_of(fd, b"")
    assert handle is not None
    return handle

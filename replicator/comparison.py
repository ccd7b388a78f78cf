"""What the replica has and the source has not: asked of the receiver after a scan, and of directories that come back.

Takes the outbox and a way to ask; has every name looked at that only the replica has, and declares dead what waits
there without a name. See docs/decisions/0009.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from replicator.link import inquiry
from replicator.model import FileId, Slot
from replicator.source.outbox import Outbox
from replicator.tree.resolver import Due
from replicator.tree.store import wide
from replicator.verify.digests import names_digest

DIRECTORIES = 500
"""Directories that are asked about at a time."""
NAMES = 8000
"""Names in them, about, in one request: the receiver looks at some while others are gathered here."""
PATIENCE = 1_000_000_000
"""ns for which content goes first."""

Ask = Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], None]
"""Have the receiver answer a request; the answer has an "error" if there is no session."""


class Comparison:
    """One sender's. `barrier(passed)` calls back when everything owed now is durable."""

    def __init__(self, outbox: Outbox, ask: Ask, barrier: Callable[[Callable[[], None]], None]) -> None:
        self._outbox = outbox
        self._ask = ask
        self._barrier = barrier
        self._done: Callable[[bool], None] = lambda complete: None
        self._comparing: dict[FileId, Due] = {}

    def start(self, done: Callable[[bool], None]) -> None:
        """Compare all directories, then what is nameless; `done(False)` if the connection was lost over it."""
        self._done = done
        now = time.monotonic_ns()
        for id in self._outbox.index.directories():
            self._outbox.unlisted.add(id, now)
        self._barrier(self._ask_nameless)

    def nameless(self, done: Callable[[bool], None]) -> None:
        """Compare only what is nameless there."""
        self._done = done
        self._ask_nameless()

    def ask_names(self) -> None:
        """Have the receiver compare the names of directories in which it may have more than the source.

        To be called in every turn after the scan.
        """
        if self._comparing or not self._outbox.unlisted:
            return
        now = time.monotonic_ns()
        if (self._outbox.table or self._outbox.reads) and now - self._outbox.unlisted.oldest() < PATIENCE:
            return  # the receiver can sync content while it compares names
        self._comparing = self._outbox.unlisted.take(DIRECTORIES, now)
        digests: dict[FileId, str] = {}
        names = 0
        for id in list(self._comparing):
            entries = self._outbox.index.entries(id)
            digests[id] = names_digest(entries, wide(list(entries.values())))
            names += len(entries)
            if names >= NAMES:
                self._ask_about(digests)
                digests, names = {}, 0
        if digests:
            self._ask_about(digests)

    def _ask_about(self, digests: dict[FileId, str]) -> None:
        directories = [(id.text(), digest) for id, digest in digests.items()]
        self._ask({"op": "names", "directories": directories}, partial(self._names_compared, digests))

    def _names_compared(self, asked: Iterable[FileId], body: dict[str, Any]) -> None:
        lost = inquiry.refusal(body) is not None
        there = [] if lost else inquiry.directories(body)
        extra: dict[Slot, Due] = {}
        now = time.monotonic_ns()
        for directory, names in there:
            known = self._outbox.index.children(directory)
            due = self._comparing.get(directory)
            if due is not None:
                extra.update((Slot(directory, name), due) for name in names if name not in known)
                for name in known:  # it may mean another inode there
                    self._outbox.resolver.look(Slot(directory, name), now, due.generation, force=True)
        limit = self._outbox.deletions.limit
        if lost or not extra or limit is None:
            self._compared(asked, extra, lost=lost)
            return
        slots = [(slot.parent.text(), slot.name.decode("latin-1")) for slot in extra]
        self._ask({"op": "beneath", "names": slots, "most": limit + 1}, partial(self._counted, asked, extra))

    def _counted(self, asked: Iterable[FileId], extra: dict[Slot, Due], body: dict[str, Any]) -> None:
        """How much each of those names is: what is too much is left on the replica."""
        lost = inquiry.refusal(body) is not None
        amounts = [] if lost else inquiry.numbers(body, len(extra))
        now = time.monotonic_ns()
        few: dict[Slot, Due] = {}
        for (slot, due), names in zip(extra.items(), amounts, strict=False):
            held = Due(self._outbox.generations.hold(due.generation), now)
            if self._outbox.deletions.surplus(slot, names, held, now):
                self._outbox.generations.release(held.generation)
                few[slot] = due
        self._compared(asked, few, lost=lost)

    def _compared(self, asked: Iterable[FileId], extra: dict[Slot, Due], *, lost: bool) -> None:
        compared = {id: self._comparing.pop(id) for id in asked}
        now = time.monotonic_ns()
        if lost:  # asked again on the next connection
            for id, token in compared.items():
                self._outbox.unlisted.add(id, token.since, token.generation)
        for slot, due in extra.items():
            self._outbox.resolver.look(slot, now, due.generation, force=True)
        self._outbox.unlisted.answered(compared)
        for token in compared.values():
            self._outbox.generations.release(token.generation)

    def _ask_nameless(self) -> None:
        self._ask({"op": "nameless"}, self._nameless)

    def _nameless(self, body: dict[str, Any]) -> None:
        """Inodes that an earlier sender left behind without a name: those that the source does not have are dead."""
        if inquiry.refusal(body) is not None:
            self._done(False)
            return
        now = time.monotonic_ns()
        dead = [id for id in inquiry.ids(body) if not self._outbox.index.is_member(id)]
        for id in dead:
            self._outbox.debts.dead(id, now)
        if dead:  # what was in them is nameless next
            self._barrier(self._ask_nameless)
        else:
            self._outbox.checking = False
            self._done(True)

"""What one sender leaves to the next on this state directory, and takes up from the one before.

Takes the ledger; gives the journal, with what its snapshots must say, and has owed what the predecessor's said. What
happened between the two, if nobody saw that, is found by a survey.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from replicator.capture.names import Overflow, SlotLook
from replicator.catchup import Catchup
from replicator.intake import Intake
from replicator.journal.marks import Mark
from replicator.ledger import Ledger
from replicator.model import FileId
from replicator.source import snapshot
from replicator.source.outbox import Outbox


class Succession:
    """One sender's."""

    def __init__(self, ledger: Ledger, outbox: Outbox, catchup: Catchup, forsaken: Callable[[], None]) -> None:
        """`forsaken`: see Journal."""
        self._ledger = ledger
        self._outbox = outbox
        self._catchup = catchup
        self.journal = ledger.journal(outbox, self._owed, forsaken)

    def take_up(self, intake: Intake, own: Iterable[FileId], *, gap: bool) -> bool:
        """Go on where a predecessor ended; whether a survey is needed for that, and was begun. `gap`: there were no
        hooks for a while. `own`: directories of the source that are rsyncfs's, now."""
        now = time.monotonic_ns()
        outbox, journal = self._outbox, self.journal
        outbox.succeeding = True
        for id in own:  # made in the source since the predecessor looked
            for slot in outbox.index.slots_of(id):
                outbox.resolver.look(slot, now)
        items = journal.restored()
        if items is None:
            journal.forget()
        else:
            intake.restore(items)
            journal.restored_all()
        survey = gap or items is None
        if survey:
            self._catchup.survey()
        journal.begin(now, anew=items is None)
        if self._catchup.busy:
            journal.marks([Overflow()], now)
        return survey

    def _owed(self) -> Iterator[Mark]:
        """All that is not durable, or is and the index does not say so yet; for the journal."""
        yield from snapshot.marks(self._outbox)
        for told in (*self._ledger.unwritten, *self._outbox.news.waiting):
            yield from (SlotLook(slot, None) for slot in told.slots)
            yield from snapshot.lists(told.dead)
        if self._catchup.busy:
            yield Overflow()

"""Everything that is not durable, as marks, and back: what a successor needs that the index does not have.

Takes an outbox, or what its looks found; gives marks for the journal (journal/marks.py). Takes the marks of a
predecessor; has owed what they say. Deaths are not among them: who is to die has lost its names, and a successor asks
the replica who has none. But if one comes back, the successor finds it as the index has it, while the replica may have
executed part of its death, or have made it anew in part: so directories that die are to be compared, and who returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from replicator.capture.names import ListLook, SlotLook
from replicator.dirty.ranges import RangeSet
from replicator.journal.marks import Doubt, Mark, Partial, Whole
from replicator.model import FileId
from replicator.source.outbox import Outbox
from replicator.tree.resolver import Changes


def marks(outbox: Outbox) -> Iterator[Mark]:
    """All that is owed, or on its way."""
    for owed in (*outbox.table.values(), *outbox.leaving()):
        if owed.whole:
            yield Whole(owed.id)
        else:
            if owed.deep:
                yield Doubt(owed.id)
            ranges, folios = tuple(owed.ranges), tuple(owed.folios)
            yield Partial(owed.id, ranges, folios, owed.lowest, owed.mapped, owed.holes, owed.check)
    inflight, naming = outbox.epochs.inflight, outbox.debts.naming
    flying = [slot for epoch in inflight for slot in epoch.slots]
    yield from (SlotLook(slot, None) for slot in (*outbox.debts.slots(), *flying))
    extra = (slot.parent for slot in outbox.deletions.extra())
    yield from lists((*outbox.resolver.lists(), *outbox.unlisted, *extra))
    yield from lists((*naming.dead(), *(id for epoch in inflight for id in epoch.dead)))


def lists(ids: Iterable[FileId]) -> Iterator[Mark]:
    """The names in these are to be compared, of those that are directories."""
    yield from (ListLook(id) for id in dict.fromkeys(ids))


def found(changes: Changes) -> Iterator[Mark]:
    """What a look found, and is not in what led to it. To be said before the replica is told of any of it."""
    yield from lists((*changes.lists, *changes.buried))
    yield from (Whole(id) for id in changes.returned)


def restore(outbox: Outbox, mark: Whole | Doubt | Partial, now: int) -> None:
    """Owe what a predecessor owed. Who is no member yet becomes one by its name, or the replica asks about it."""
    if not outbox.index.is_member(mark.id):
        return
    if isinstance(mark, Whole):  # if it has got it meanwhile, it need not travel again
        outbox.suspicion.offer(mark.id, now, None)
        outbox.suspicion.doubt(mark.id, now, lost=True)
        if outbox.index.is_directory(mark.id):  # it may have got that, and not yet the names in it
            outbox.unlisted.add(mark.id, now)
    elif isinstance(mark, Doubt):
        outbox.suspicion.doubt(mark.id, now, lost=True)
    else:
        owed = outbox.table.mark(mark.id, now)
        owed.mapped |= mark.mapped
        owed.holes |= mark.holes
        owed.check |= mark.check
        owed.ranges.update(RangeSet(mark.ranges))
        owed.folios.update(RangeSet(mark.folios))
        if mark.lowest is not None:
            owed.lower(mark.lowest)

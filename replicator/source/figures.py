"""How much is owed, and since when: for metrics and `status`.

Takes an outbox; gives numbers. They are what a person wants to know, not what anything goes by: bytes are estimated
where counting would take long.
"""

from __future__ import annotations

from itertools import islice

from replicator.dirty.table import Owed
from replicator.model import END_OF_FILE
from replicator.source.outbox import Outbox

SAMPLE = 20_000
"""Dirty inodes whose bytes are counted; beyond, they are extrapolated from those."""


def dirty_files(outbox: Outbox) -> int:
    """Inodes that owe something, and are not in an epoch to their end; one that is being read may count twice."""
    return len(outbox.table) + len(outbox.reads)


def dirty_bytes(outbox: Outbox) -> int:
    """Bytes that are owed and not durable."""
    counted = total = 0
    for owed in islice(outbox.table.values(), SAMPLE):
        counted += 1
        total += extent(outbox, owed) or 0
    if counted:
        total = total * len(outbox.table) // counted
    return total + sum(epoch.bytes for epoch in outbox.epochs.inflight)


def extent(outbox: Outbox, owed: Owed) -> int | None:
    """How many bytes it owes; None if they reach to the end of a file whose size is not known."""
    total = 0
    for ranges in (owed.ranges, owed.folios):
        end = ranges.end
        if end == END_OF_FILE:
            size = outbox.debts.sizes.get(owed.id)
            if size is None:
                return None
            end = min(end, size)
        total += ranges.within(end).total
    return total


def oldest(outbox: Outbox) -> int | None:
    """The time (CLOCK_MONOTONIC, ns) of the oldest change that is not durable on the replica; None if all is."""
    debts = outbox.debts
    times = [owed.since for owed in (*debts.table.values(), *outbox.reads.owed(), *debts.doubts.owed())]
    times += [due.since for due in (*debts.naming.dues(), *debts.refused.dues())]
    times += [since for epoch in outbox.epochs.inflight for since in epoch.sinces()]
    looked = debts.resolver.oldest()
    return min(times if looked is None else [*times, looked], default=None)

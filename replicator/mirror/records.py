"""How a record changes with each fact, as pure functions: the only place that knows when content may be believed.

A regular file is in one of four states. *Sound*: complete, not suspect. *Filling* (not complete): a whole content is
arriving in parts. *Touched* (complete, suspect): it lacks bytes that the sender owes and will send, because a crash
left those of an epoch in doubt, or because the sender compares it block by block. *Lost* (neither complete nor
certain): who owed the rest has gone; a whole content mends it, or a comparison.
"""

from __future__ import annotations

from dataclasses import replace

from replicator.mirror.steps import Record
from replicator.model import InodeFact, Kind


def after_create(fact: InodeFact) -> Record:
    """The record of an inode just made from `fact`."""
    if fact.partial:
        return Record(fact.kind, complete=False)
    return after_adorn(Record(fact.kind, fact.size), fact)


def after_write(record: Record, fact: InodeFact) -> Record:
    """The record once the bytes of `fact` are in place: no time belongs to them until `after_adorn`."""
    if fact.partial:
        return Record(record.kind, record.size, complete=record.complete and not fact.whole)
    return Record(record.kind, fact.size)


def after_adorn(record: Record, fact: InodeFact) -> Record:
    """The record once attributes and times are those of `fact`."""
    attributes = fact.attributes
    ctime_ns = attributes.ctime_ns if fact.settled else None
    return Record(record.kind, record.size, attributes.mtime_ns, ctime_ns, record.complete, record.suspect)


def is_lost(record: Record) -> bool:
    """Only a whole content helps."""
    return record.suspect and not record.complete


def lost(record: Record) -> Record:
    """The record when nobody knows what its bytes, or its time, are."""
    doubtful = replace(record, mtime_ns=-1, ctime_ns=None)
    return replace(doubtful, complete=False, suspect=True) if record.kind is Kind.FILE else doubtful


def forsaken(record: Record) -> Record:
    """The record when the sender that may have owed bytes is replaced by one that does not know of them."""
    return record if record.sound else lost(record)


def doubted(record: Record) -> Record:
    """The record once the sender compares the content: from now on it owes whatever is wrong with it."""
    return replace(record, complete=True, suspect=True, mtime_ns=-1, ctime_ns=None)


def matches(record: Record, fact: InodeFact) -> bool:
    """Whether a `check` fact may spare the bytes: what is stored says that nothing has changed since.

    A file whose change time was not worth storing (its bytes may be older than its times) must come again.
    """
    if record.kind != fact.kind:
        return False
    if fact.kind is not Kind.FILE:
        return True
    attributes = fact.attributes
    return (
        record.sound
        and record.size == fact.size
        and record.mtime_ns == attributes.mtime_ns
        and record.ctime_ns == attributes.ctime_ns
    )


def moves_bytes(record: Record, fact: InodeFact) -> bool:
    """Whether a fact about a known regular file changes (or completes) its content, rather than its attributes only."""
    return bool(
        fact.partial
        or fact.whole
        or fact.data
        or fact.holes
        or fact.lowest is not None
        or fact.size != record.size
        or not record.sound
    )

"""What `repeats.py` moves: a file, processors with notes and store buffers, writers, a ring, a reader.

Values only, and the changes that several steps have in common.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

Item = TypeVar("Item")

FIRST, SECOND, BOTH = 1, 2, 3
"""Pages, as a mask."""


class Note(NamedTuple):
    """A processor's."""

    pages: int = 0
    epoch: int = 0
    busy: int = 0


class Writer(NamedTuple):
    """Where one is in its writes."""

    write: int = 0
    at: str = "store"
    epoch: int = 0
    """Of the record that it makes."""
    noting: bool = True
    submitted: bool = True


class Record(NamedTuple):
    """In the ring, or (not busy) what all records that are owed come to."""

    pages: int
    epoch: int
    late: bool
    """Made after the last read began."""
    writer: int = -1
    """Who still fills it; -1 when it is submitted."""
    whole: bool = False


class Flush(NamedTuple):
    """What is being read: the pages still to read, and what was read of the first of them."""

    owed: Record
    left: int
    fence: int
    at: str = "waiting"
    got: int = 0


Pages = tuple[int, int]


class State(NamedTuple):
    """Everything."""

    file: Pages
    replica: Pages
    buffers: tuple[tuple[tuple[int, int], ...], ...]
    """By processor: stores (pages, number) that others do not see yet."""
    epoch: int
    """What writers load."""
    notes: tuple[Note, ...]
    """By processor."""
    writers: tuple[Writer, ...]
    ring: tuple[Record, ...]
    lost: bool
    """The file is marked as one of which a record did not fit."""
    reader: str
    """Where the reader is in its turn."""
    fence: int
    """The epoch that it began last."""
    repeats: bool
    """As DirtyTable.repeats."""
    member: bool
    owed: Record | None
    flush: Flush | None
    full: bool
    """A record may still fail to fit."""
    cut: bool
    """The connection may still be lost."""


WHOLE = Record(BOTH, 0, late=False, whole=True)


def owe(state: State, record: Record) -> State:
    owed = state.owed
    if owed is None:
        return state._replace(owed=record)
    return state._replace(
        owed=Record(
            owed.pages | record.pages,
            max(owed.epoch, record.epoch),
            owed.late or record.late,
            whole=owed.whole or record.whole,
        )
    )


def visible(state: State, processor: int, count: int) -> State:
    """The processor's oldest stores reach memory."""
    file, stores = state.file, state.buffers[processor]
    for pages, number in stores[:count]:
        file = filled(file, pages, number)
    return state._replace(file=file, buffers=put(state.buffers, processor, stores[count:]))


def wrote(state: State, who: int, writer: Writer) -> State:
    return state._replace(writers=put(state.writers, who, writer))


def noted(state: State, processor: int, note: Note) -> State:
    return state._replace(notes=put(state.notes, processor, note))


def put(items: tuple[Item, ...], at: int, item: Item) -> tuple[Item, ...]:
    return (*items[:at], item, *items[at + 1 :])


def filled(pages: Pages, mask: int, number: int) -> Pages:
    return (number if mask & FIRST else pages[0], number if mask & SECOND else pages[1])

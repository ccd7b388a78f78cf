"""What the journal remembers besides the kernel's records: where to look, and what is owed.

Takes marks, gives JSON arrays, and back. ValueError for what is none. Pure. A mark may be acted on any number of times.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from replicator.capture.names import InodeLook, ListLook, Look, MovedLook, Overflow, SlotLook
from replicator.model import END_OF_FILE, FileId, Slot


class Whole(NamedTuple):
    """All of this inode is owed, with its names."""

    id: FileId


class Doubt(NamedTuple):
    """What the replica has of this inode's content is in doubt."""

    id: FileId


class Partial(NamedTuple):
    """What one inode owes. `ranges` and `folios`: (start, end) in bytes; `lowest`: the lowest size, if it was set."""

    id: FileId
    ranges: tuple[tuple[int, int], ...]
    folios: tuple[tuple[int, int], ...]
    lowest: int | None
    mapped: bool
    holes: bool
    check: bool


Mark = Look | Whole | Doubt | Partial


def encode(mark: Mark) -> list[Any]:
    """A JSON array."""
    match mark:
        case SlotLook(slot, _):
            return ["slot", slot.parent.text(), slot.name.decode("latin-1")]
        case InodeLook(id):
            return ["inode", id.text()]
        case MovedLook(id):
            return ["moved", id.text()]
        case ListLook(id):
            return ["list", id.text()]
        case Overflow():
            return ["all"]
        case Whole(id):
            return ["whole", id.text()]
        case Doubt(id):
            return ["doubt", id.text()]
        case Partial(id, ranges, folios, lowest, mapped, holes, check):
            return ["owed", id.text(), ranges, folios, lowest, mapped, holes, check]


def decode(value: Any) -> Mark:
    """Read `encode` back. ValueError if it is anything else."""
    try:
        match value:
            case ["slot", str(parent), str(name)]:
                return SlotLook(Slot(FileId.parse(parent), name.encode("latin-1")), None)
            case ["inode", str(id)]:
                return InodeLook(FileId.parse(id))
            case ["moved", str(id)]:
                return MovedLook(FileId.parse(id))
            case ["list", str(id)]:
                return ListLook(FileId.parse(id))
            case ["all"]:
                return Overflow()
            case ["whole", str(id)]:
                return Whole(FileId.parse(id))
            case ["doubt", str(id)]:
                return Doubt(FileId.parse(id))
            case ["owed", str(id), [*ranges], [*folios], int() | None as lowest, bool(m), bool(h), bool(check)]:
                return Partial(FileId.parse(id), _ranges(ranges), _ranges(folios), lowest, m, h, check)
    except UnicodeEncodeError as error:
        raise ValueError(str(error)) from None
    raise ValueError(f"not a mark: {value!r}")


def _ranges(values: list[Any]) -> tuple[tuple[int, int], ...]:
    found = []
    for value in values:
        match value:
            case [int(start), int(end)] if 0 <= start < end <= END_OF_FILE:
                found.append((start, end))
            case _:
                raise ValueError(f"not a range: {value!r}")
    return tuple(found)

"""A picture of names that can be changed without changing what it was taken from.

Takes a View and naming steps, gives the View as it would be after them. The planner thinks on one; a simulated replica
can be one. Nothing is checked against a disk.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from replicator.mirror.steps import LIMBO, Exchange, Link, Naming, Record, Rename, Rmdir, Unlink, View
from replicator.model import FileId, Kind, Slot


class Names:
    """`base` with changes on top. A View itself."""

    def __init__(self, base: View) -> None:
        self._base = base
        self._records: dict[FileId, Record | None] = {}
        self._bound: dict[Slot, FileId | None] = {}
        self._places: dict[FileId, dict[Slot, None]] = {}
        self._changed_in: dict[FileId, set[bytes]] = {}

    @property
    def root(self) -> FileId:
        """The root of the view beneath."""
        return self._base.root

    def record(self, id: FileId) -> Record | None:
        """See View."""
        if id in self._records:
            return self._records[id]
        return self._base.record(id)

    def bound(self, place: Slot) -> FileId | None:
        """See View."""
        if place in self._bound:
            return self._bound[place]
        return self._base.bound(place)

    def places(self, id: FileId) -> Collection[Slot]:
        """See View."""
        if id in self._places:
            return self._places[id]
        return self._base.places(id)

    def children(self, directory: FileId) -> Iterable[tuple[bytes, FileId]]:
        """See View."""
        changed = self._changed_in.get(directory, set())
        for name, id in self._base.children(directory):
            if name not in changed:
                yield name, id
        for name in changed:
            bound = self._bound[Slot(directory, name)]
            if bound is not None:
                yield name, bound

    def place_of(self, directory: FileId) -> Slot | None:
        """The one place of a directory; None for the root and for what is unknown."""
        return next(iter(self.places(directory)), None)

    def is_directory(self, id: FileId) -> bool:
        """False for unknown ids too."""
        record = self.record(id)
        return record is not None and record.kind is Kind.DIRECTORY

    def ancestry(self, directory: FileId) -> Iterator[FileId]:
        """`directory` and all that are above it, up to the root or the last one before limbo."""
        at = directory
        while True:
            yield at
            place = self.place_of(at)
            if place is None or place.parent == LIMBO:
                return
            at = place.parent

    def set_record(self, id: FileId, record: Record | None) -> None:
        """From now on this is what is known of the inode."""
        self._records[id] = record

    def bind(self, place: Slot, id: FileId) -> None:
        """`place`, which must be empty, means `id`."""
        self._bound[place] = id
        self._own(id)[place] = None
        self._changed_in.setdefault(place.parent, set()).add(place.name)

    def unbind(self, place: Slot) -> None:
        """`place`, which must not be empty, is empty."""
        id = self.bound(place)
        assert id is not None
        self._bound[place] = None
        del self._own(id)[place]
        self._changed_in.setdefault(place.parent, set()).add(place.name)

    def take(self, step: Naming) -> None:
        """The effect of one naming step; its expectations must hold."""
        match step:
            case Rename(id, source, target):
                self.unbind(source)
                self.bind(target, id)
            case Link(id, _, target):
                self.bind(target, id)
            case Exchange(id, source, target, other):
                self.unbind(source)
                self.unbind(target)
                self.bind(source, other)
                self.bind(target, id)
            case Unlink(id, place) | Rmdir(id, place):
                self.unbind(place)
                if not self.places(id):
                    self.set_record(id, None)

    def _own(self, id: FileId) -> dict[Slot, None]:
        if id not in self._places:
            self._places[id] = dict.fromkeys(self._base.places(id))
        return self._places[id]

"""Which names the facts of an epoch want, once contradictions are out: every wish left can be fulfilled.

Takes slot facts and the names as they are; gives `want`: slot → id, or None for empty. What cannot be wished for yet
goes to the plan's needs and looks. A tree seen while it moves can say that a directory is at two places (the later one
is believed) or that directories contain each other (all of them stay where they are until looked at again).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from replicator.mirror.names import Names
from replicator.mirror.records import is_lost
from replicator.mirror.steps import LIMBO, Plan
from replicator.model import FileId, Slot, SlotFact


class Wishes:
    """The names wanted in one epoch."""

    def __init__(self, names: Names, plan: Plan, bindable: Callable[[FileId], bool]) -> None:
        self.want: dict[Slot, FileId | None] = {}
        self._names = names
        self._plan = plan
        self._bindable = bindable
        self._homes: dict[FileId, Slot] = {}

    def take(self, facts: Iterable[SlotFact]) -> None:
        """Decide. Called once."""
        for fact in facts:
            self._take_one(fact.slot, fact.id)
        self._one_home_each()
        while self._hold_a_cycle():
            pass

    def home(self, directory: FileId) -> Slot | None:
        """Where a directory is to be in the end; None for the root and for one that goes to (or stays in) limbo."""
        if directory in self._homes:
            return self._homes[directory]
        place = self._names.place_of(directory)
        if place is None or place.parent == LIMBO or self.want.get(place, directory) != directory:
            return None
        return place

    def homes(self) -> dict[FileId, Slot]:
        """The directories that get a place by these wishes, with it."""
        return self._homes

    def depth(self, directory: FileId) -> int:
        """How many directories are above it in the end."""
        depth = 0
        home = self.home(directory)
        while home is not None:
            depth += 1
            home = self.home(home.parent)
        return depth

    def _take_one(self, slot: Slot, id: FileId | None) -> None:
        if self._names.record(slot.parent) is None:
            if id is not None:
                self._plan.needs[slot.parent] = None
                self._plan.looks[slot] = None
            return
        if id is not None:
            record = self._names.record(id)
            if record is None or is_lost(record):
                self._plan.needs[id] = None
            if not self._bindable(id):
                self._plan.looks[slot] = None
                return
        self.want.pop(slot, None)
        self.want[slot] = id

    def _one_home_each(self) -> None:
        """A directory has one name: of several wishes the last one holds, and its present name is no longer one."""
        for slot, id in list(self.want.items()):
            if id is None or not self._names.is_directory(id):
                continue
            if id in self._homes:
                self._hold(self._homes[id])
            self._homes[id] = slot
        for id, slot in self._homes.items():
            place = self._names.place_of(id)
            if place is not None and place.parent != LIMBO and place != slot and place not in self.want:
                self.want[place] = None
                self._plan.looks[place] = None

    def _hold(self, slot: Slot) -> None:
        """Leave a slot as it is, to be looked at again."""
        self.want.pop(slot, None)
        self._plan.looks[slot] = None

    def _hold_a_cycle(self) -> bool:
        """Find wishes by which directories would contain each other, and drop them. False if there are none."""
        proven: set[FileId] = set()
        for start in self._homes:
            path: dict[FileId, None] = {}
            at: FileId | None = start
            while at is not None and at not in proven:
                if at in path:
                    members = list(path)
                    for member in members[members.index(at) :]:
                        self._stay(member)
                    return True
                path[at] = None
                home = self.home(at)
                at = home.parent if home is not None else None
            proven.update(path)
        return False

    def _stay(self, directory: FileId) -> None:
        slot = self._homes.pop(directory, None)
        if slot is None:
            return
        self._hold(slot)
        place = self._names.place_of(directory)
        if place is not None and place in self.want and self.want[place] is None:
            self._hold(place)

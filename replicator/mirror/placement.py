"""From wishes to naming steps: which name moves when.

Takes the names as they are and as they are wanted; emits steps into the plan, following each on its picture of the
names. An occupied slot changes hands by one exchange, so a reader always finds the old or the new inode there. A
displaced inode that still is wanted waits in limbo, one that has other names just loses this one.
"""

from __future__ import annotations

from collections.abc import Sequence

from replicator.mirror.names import Names
from replicator.mirror.steps import LIMBO, Exchange, Link, Naming, Plan, Rename, Unlink, limbo_place
from replicator.mirror.wishes import Wishes
from replicator.model import FileId, Slot


class Placement:
    """The naming steps of one epoch. `renamed_in` collects the directories whose times change by them."""

    def __init__(self, names: Names, plan: Plan, wishes: Wishes, dead: set[FileId]) -> None:
        self.renamed_in: dict[FileId, None] = {}
        self._names = names
        self._plan = plan
        self._wishes = wishes
        self._dead = dead

    def run(self, births: Sequence[Rename]) -> None:
        """Directories, parents first; then all other names, those of `births` (which nobody else has to do with) before
        the rest; then what is in a place where it is not wanted."""
        want = self._wishes.want
        self._tidy()
        for slot, id in list(want.items()):
            if id is None:
                self._evict(slot)
        homes = self._wishes.homes()
        for id in sorted(homes, key=self._wishes.depth):
            self._place_directory(id, homes[id])
        self._plan.steps.extend(births)
        self.renamed_in.update((birth.target.parent, None) for birth in births)
        for slot, id in want.items():
            if id is not None and id not in homes:
                self._place_file(id, slot)
        for slot, id in want.items():
            occupant = self._names.bound(slot)
            if occupant is not None and occupant != id:
                self.drop(occupant, slot)

    def emit(self, step: Naming) -> None:
        """Add a step to the plan and follow it."""
        self._names.take(step)
        self._plan.steps.append(step)
        match step:
            case Rename(_, source, target) | Exchange(_, source, target):
                touched: tuple[Slot, ...] = (source, target)
            case Link(_, _, target):
                touched = (target,)
            case _:
                touched = (step.place,)
        for place in touched:
            if place.parent != LIMBO:
                self.renamed_in[place.parent] = None
            # XFS sets a directory's own modification time when an exchange gives it another parent.
            moved = self._names.bound(place)
            if moved is not None and self._names.is_directory(moved):
                self.renamed_in[moved] = None

    def drop(self, id: FileId, place: Slot) -> None:
        """Take a name away. The last name of what is not dead moves to limbo; dead directories wait for their turn."""
        if self._names.is_directory(id):
            if id not in self._dead and place != limbo_place(id):
                self.emit(Rename(id, place, limbo_place(id)))
        elif len(self._names.places(id)) > 1:
            self.emit(Unlink(id, place))
        elif id in self._dead:
            self.emit(Unlink(id, place, final=True))
        elif place != limbo_place(id):
            self.emit(Rename(id, place, limbo_place(id)))

    def _tidy(self) -> None:
        """What an epoch that broke off has left in limbo: names of what has others, names that are not its own."""
        for name, id in list(self._names.children(LIMBO)):
            if len(self._names.places(id)) > 1:
                self.emit(Unlink(id, Slot(LIMBO, name)))
        for name, id in list(self._names.children(LIMBO)):
            place = Slot(LIMBO, name)
            if place != limbo_place(id):
                if self._names.bound(limbo_place(id)) is not None:
                    self._untangle(place)
                else:
                    self.emit(Rename(id, place, limbo_place(id)))

    def _untangle(self, place: Slot) -> None:
        """Another inode has this one's name in limbo, and perhaps so on in a circle: exchanges bring each home."""
        while (id := self._names.bound(place)) is not None and place != limbo_place(id):
            other = self._names.bound(limbo_place(id))
            if other is None:
                self.emit(Rename(id, place, limbo_place(id)))
            else:
                self.emit(Exchange(id, place, limbo_place(id), other))

    def _evict(self, slot: Slot) -> None:
        """A directory that goes to limbo goes first: another one may have its place beneath it."""
        occupant = self._names.bound(slot)
        if occupant is None or not self._names.is_directory(occupant) or occupant in self._dead:
            return
        if self._wishes.home(occupant) is None:
            self.drop(occupant, slot)

    def _place_directory(self, id: FileId, slot: Slot) -> None:
        self._clear_way(id, slot)
        place = self._names.place_of(id)
        assert place is not None
        if place == slot:
            return
        occupant = self._names.bound(slot)
        if occupant is None:
            self.emit(Rename(id, place, slot))
            return
        if place.parent != LIMBO and occupant in self._names.ancestry(place.parent):
            self.emit(Rename(id, place, limbo_place(id)))
            place = limbo_place(id)
        self.emit(Exchange(id, place, slot, occupant))
        if place.parent == LIMBO:
            self._displaced(occupant, place)
        else:
            self._wishes.want.setdefault(place, None)

    def _clear_way(self, id: FileId, slot: Slot) -> None:
        """No directory can move into itself: what is on the way there and is to be elsewhere waits in limbo."""
        way = list(self._names.ancestry(slot.parent))
        if id not in way:
            return
        for between in way[: way.index(id)]:
            place = self._names.place_of(between)
            if place is not None and place != self._wishes.home(between):
                self.emit(Rename(between, place, limbo_place(between)))
                return

    def _place_file(self, id: FileId, slot: Slot) -> None:
        occupant = self._names.bound(slot)
        if occupant == id:
            return
        want = self._wishes.want
        places = list(self._names.places(id))
        waiting = next((place for place in places if place.parent == LIMBO), None)
        if occupant is None:
            leaving = next((place for place in places if place in want and want[place] is None), None)
            if waiting is not None or leaving is not None:
                source = waiting or leaving
                assert source is not None
                self.emit(Rename(id, source, slot))
            else:
                self.emit(Link(id, places[0], slot))
            return
        if not self._names.is_directory(occupant):
            swap = next((place for place in places if place in want and want[place] == occupant), None)
            if swap is not None:
                self.emit(Exchange(id, swap, slot, occupant))
                return
        if waiting is None:
            waiting = limbo_place(id)
            self.emit(Link(id, places[0], waiting))
        self.emit(Exchange(id, waiting, slot, occupant))
        self._displaced(occupant, waiting)

    def _displaced(self, id: FileId, place: Slot) -> None:
        """An inode has come to limbo under another's name."""
        if id in self._dead and self._names.is_directory(id):
            self.emit(Rename(id, place, limbo_place(id)))
        else:
            self.drop(id, place)

"""The index against a naive model: one dictionary from slot to id."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicator.model import FileId, Kind, Slot
from replicator.tree.index import TreeIndex

ROOT = FileId(0, 0, 2, 1)
DIRECTORIES = [FileId(0, 0, 10 + number, 1) for number in range(4)]
FILES = [FileId(0, 0, 20 + number, 1) for number in range(4)]
NAMES = [b"a", b"b", b"c"]

steps = st.lists(
    st.tuples(
        st.sampled_from(["bind", "bind", "bind", "unbind", "forget"]),
        st.sampled_from([ROOT, *DIRECTORIES]),
        st.sampled_from(NAMES),
        st.sampled_from([*DIRECTORIES, *FILES]),
    ),
    max_size=40,
)


class Naive:
    """What the index must be equal to, written without a thought for cost."""

    def __init__(self) -> None:
        self.slots: dict[Slot, FileId] = {}
        self.members = {ROOT}

    def bind(self, slot: Slot, inode: FileId) -> FileId | None:
        displaced = self.slots.get(slot)
        if inode in DIRECTORIES:
            self.slots = {other: held for other, held in self.slots.items() if held != inode}
        self.slots[slot] = inode
        self.members.add(inode)
        return None if displaced == inode else displaced

    def forget(self, inode: FileId) -> set[FileId]:
        if inode not in self.members:
            return set()
        gone = {inode}
        self.slots = {slot: held for slot, held in self.slots.items() if held != inode}
        while True:
            below = {held for slot, held in self.slots.items() if slot.parent in gone}
            self.slots = {slot: held for slot, held in self.slots.items() if slot.parent not in gone}
            lost = {held for held in below if held not in self.slots.values()} - gone
            if not lost:
                self.members -= gone
                return gone
            gone |= lost

    def paths(self, inode: FileId) -> set[bytes]:
        """All paths of the id that lead to the root."""
        found = set()
        for slot, held in self.slots.items():
            if held == inode:
                path, parent, hops = slot.name, slot.parent, 0
                while parent != ROOT and hops < 10:
                    above = next((other for other, there in self.slots.items() if there == parent), None)
                    if above is None:
                        break
                    path, parent, hops = above.name + b"/" + path, above.parent, hops + 1
                if parent == ROOT:
                    found.add(path)
        return found

    def below(self, inode: FileId) -> set[FileId]:
        reached = {inode}
        while True:
            more = {held for slot, held in self.slots.items() if slot.parent in reached} - reached
            if not more:
                return reached
            reached |= more


@given(steps)
def test_it_equals_the_naive_model(steps: list[tuple[str, FileId, bytes, FileId]]) -> None:
    index, naive = TreeIndex(ROOT), Naive()
    for action, parent, name, inode in steps:
        slot = Slot(parent, name)
        if action == "bind" and parent in naive.members:
            kind = Kind.DIRECTORY if inode in DIRECTORIES else Kind.FILE
            assert index.bind(slot, inode, kind) == naive.bind(slot, inode)
        elif action == "unbind":
            assert index.unbind(slot) == naive.slots.pop(slot, None)
        elif action == "forget":
            gone = index.forget(inode)
            assert len(gone) == len(set(gone))
            assert set(gone) == naive.forget(inode)
        for each in [ROOT, *DIRECTORIES, *FILES]:
            slots = {where for where, held in naive.slots.items() if held == each}
            assert set(index.slots_of(each)) == slots
            assert index.is_member(each) == (each in naive.members)
            if each != ROOT:
                path = index.path(each)
                assert (path in naive.paths(each)) if path is not None else not naive.paths(each)
            if each in naive.members:
                listed = list(index.subtree(each))
                assert len(listed) == len(set(listed))
                assert set(listed) == naive.below(each)
            assert dict(index.children(each)) == {
                where.name: held for where, held in naive.slots.items() if where.parent == each
            }
        assert len(index) == len(naive.members)
        assert set(index.nameless()) == naive.members - set(naive.slots.values()) - {ROOT}

"""The index against a naive model: one dictionary from slot to id."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from replicator.model import FileId, Kind, Slot
from replicator.tree.index import TreeIndex
from replicator.tree.store import Committed, Entry, IndexStore, Told, id_of, key_of, wide
from replicator.tree.undecided import Undecided, reborn

ROOT = FileId(0, 0, 2, 1)
DIRECTORIES = [FileId(0, 0, 10 + number, 1) for number in range(4)]
FILES = [FileId(0, 0, 20 + number, 1) for number in range(3)] + [FileId(0, 7, 20, 1)]
NAMES = [b"a", b"b", b"c"]
EVERY = [Slot(parent, name) for parent in (ROOT, *DIRECTORIES) for name in NAMES]

steps = st.lists(
    st.tuples(
        st.sampled_from(["bind", "bind", "bind", "unbind", "forget"]),
        st.sampled_from([ROOT, *DIRECTORIES]),
        st.sampled_from(NAMES),
        st.sampled_from([*DIRECTORIES, *FILES]),
    ),
    max_size=40,
)


@given(st.lists(st.builds(FileId, st.just(0), *[st.integers(0, 2**64 - 1)] * 2, st.integers(0, 2**32 - 1))))
def test_keys_are_read_back_each_and_many_at_once(ids: list[FileId]) -> None:
    keys = [key_of(id) for id in ids]
    assert [id_of(key) for key in keys] == ids
    assert wide(keys) == b"".join(id.wide() for id in ids)


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


_BEGIN = [
    ("bind", ROOT, NAMES[0], DIRECTORIES[0], 0),
    ("bind", DIRECTORIES[0], NAMES[0], FILES[0], 0),
    ("tell all", ROOT, NAMES[0], ROOT, 0),
    ("commit all", ROOT, NAMES[0], ROOT, 0),
]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["bind", "bind", "unbind", "forget", "return", "tell", "tell all", "commit", "commit all", "notice"]
            ),
            st.sampled_from([ROOT, *DIRECTORIES[:2]]),
            st.sampled_from(NAMES[:2]),
            st.sampled_from([*DIRECTORIES[:2], *FILES[:2]]),
            st.integers(0, 7),
        ),
        max_size=60,
    )
)
@example(  # a directory that is renamed while the store is told what is in it
    [
        *_BEGIN,
        ("bind", ROOT, NAMES[1], DIRECTORIES[0], 0),
        ("tell all", ROOT, NAMES[0], ROOT, 0),
        ("notice", ROOT, NAMES[0], ROOT, 0),
    ]
)
@settings(max_examples=300)
def test_it_equals_the_naive_model_whatever_the_store_has(
    steps: list[tuple[str, FileId, bytes, FileId, int]],
) -> None:
    with tempfile.TemporaryDirectory() as directory, contextlib.closing(IndexStore(Path(directory, "index"))) as store:
        store.settle(ROOT)
        index, naive = TreeIndex(ROOT, store), Naive()
        owed: set[Slot] = set()
        dead: set[FileId] = set()
        flight: list[Told] = []
        stored: list[Committed] = []
        replica = Naive()
        left: dict[Slot, FileId] = {}

        def tell(some: int) -> None:
            slots = sorted(owed)[: some + 1]
            owed.difference_update(slots)
            told = Told({slot: _entry(index, slot) for slot in slots if index.is_member(slot.parent)})
            if not owed:  # a death is told after the names
                told.dead = [id for id in sorted(dead) if not index.is_member(id)]
                dead.clear()
            flight.append(told)
            for slot, entry in told.slots.items():
                if entry is None:
                    replica.slots.pop(slot, None)
                else:
                    replica.members.add(slot.parent)
                    replica.bind(slot, entry[0])
            for id in told.dead:
                replica.slots = {slot: held for slot, held in replica.slots.items() if slot.parent != id and held != id}

        def bind(slot: Slot, inode: FileId) -> None:
            if slot.parent not in naive.members:
                return
            kind = Kind.DIRECTORY if inode in DIRECTORIES else Kind.FILE
            owed.update(index.slots_of(inode) if kind is Kind.DIRECTORY else ())
            if inode not in naive.members:  # of a directory that comes back, names are compared with the replica
                owed.update(at for at in replica.slots if at.parent == inode)
            assert index.bind(slot, inode, kind) == naive.bind(slot, inode)
            owed.add(slot)

        def notice() -> None:
            while stored:
                done = stored.pop(0)
                index.committed(done, [*(told for other in stored for told in other.told), *flight])

        for action, parent, name, inode, some in steps:
            slot = Slot(parent, name)
            if action == "bind":
                bind(slot, inode)
            elif action == "return":  # to where they were, but for who else is there by now
                for at, id in left.items():
                    if at not in naive.slots and id not in naive.members:
                        bind(at, id)
            elif action == "unbind":
                assert index.unbind(slot) == naive.slots.pop(slot, None)
                owed.add(slot)
            elif action == "forget":
                owed.update(index.slots_of(inode))  # what was in it goes with it
                below = index.subtree(inode)
                left = {at: id for id in below for at in index.slots_of(id)}
                dead.update(gone := index.forget(inode))
                assert set(gone) == naive.forget(inode)
            elif action.startswith("tell"):
                tell(100 if action == "tell all" else some)
            elif action.startswith("commit"):
                new = flight[: len(flight) if action == "commit all" else 1]
                stored.append(store.commit(new, {}))
                del flight[: len(new)]
            elif action == "notice":
                notice()
            _assert_equal(index, naive)
        while owed or dead:
            tell(100)
        assert replica.slots == naive.slots
        stored.append(store.commit(flight, {}))
        flight.clear()
        notice()
        _assert_equal(index, naive)
        assert not any(index.pending(each) for each in [ROOT, *DIRECTORIES] if index.is_member(each))
        again = TreeIndex(ROOT, store)
        for each in [*DIRECTORIES, *FILES]:
            assert set(again.slots_of(each)) == {where for where, held in naive.slots.items() if held == each}
        known = {each for each in [*DIRECTORIES, *FILES] if again.is_member(each)}
        assert set(naive.slots.values()) <= known <= naive.members  # who never had a name there is not known there
        assert store.count == len(known)


ids = st.sampled_from([*DIRECTORIES, *FILES])
told = st.builds(
    lambda slots, dead: Told(
        {slot: id and (id, Kind.DIRECTORY if id in DIRECTORIES else Kind.FILE) for slot, id in slots.items()}, dead=dead
    ),
    st.dictionaries(
        st.builds(Slot, st.sampled_from([ROOT, *DIRECTORIES]), st.sampled_from(NAMES)), st.none() | ids, max_size=6
    ),
    st.lists(ids, max_size=2, unique=True),
)


@example(
    before=[],
    now=[Told({Slot(ROOT, b"a"): (DIRECTORIES[0], Kind.DIRECTORY)})],
    later=[Told({Slot(ROOT, b"b"): (DIRECTORIES[0], Kind.DIRECTORY)})],
)
@example(  # what is in a directory goes with it
    before=[],
    now=[Told({Slot(DIRECTORIES[0], b"a"): (FILES[0], Kind.FILE)})],
    later=[Told(dead=[DIRECTORIES[0]])],
)
@given(st.lists(told, max_size=4), st.lists(told, min_size=1, max_size=4), st.lists(told, max_size=2))
def test_what_is_told_has_the_effect_on_the_store_that_it_says(
    before: list[Told], now: list[Told], later: list[Told]
) -> None:
    with tempfile.TemporaryDirectory() as directory, contextlib.closing(IndexStore(Path(directory, "index"))) as store:
        store.settle(ROOT)
        store.commit(before, {})
        was = {slot: store.get(slot) for slot in EVERY}
        told, undecided = store.commit(now, {}).holders, Undecided(later)
        assert {slot for one in now for slot in one.slots} <= set(told)
        assert {slot: store.get(slot) for slot in EVERY} == {**was, **told}
        assert reborn(now, later) == {id for id in [*DIRECTORIES, *FILES] if _returns(id, now, later)}
        sure = {slot: id for slot, id in told.items() if not undecided.has(slot, id)}
        store.commit(later, {})
        assert {slot: store.get(slot) for slot in sure} == sure


def _returns(id: FileId, now: list[Told], later: list[Told]) -> bool:
    deaths = [number for number, one in enumerate(now) if id in one.dead]
    after = [*now[deaths[-1] + 1 :], *later] if deaths else []
    return any(slot.parent == id or (entry and entry[0] == id) for one in after for slot, entry in one.slots.items())


def _entry(index: TreeIndex, slot: Slot) -> Entry | None:
    id = index.get(slot)
    return None if id is None else (id, index.kind(id))


def _assert_equal(index: TreeIndex, naive: Naive) -> None:
    for each in [ROOT, *DIRECTORIES, *FILES]:
        assert set(index.slots_of(each)) == {where for where, held in naive.slots.items() if held == each}
        assert index.is_member(each) == (each in naive.members)
        if each in naive.members:
            listed = list(index.subtree(each))
            assert len(listed) == len(set(listed))
            assert set(listed) == naive.below(each)
        there = {where.name: held for where, held in naive.slots.items() if where.parent == each}
        assert index.children(each) == there
        assert list(index.entries(each)) == sorted(there)
        for seen in ({}, {name: id.ino for name, id in there.items()}, dict.fromkeys(NAMES, FILES[0].ino)):
            assert set(index.unlike(each, seen)) == {
                name
                for name in there.keys() | seen.keys()
                if name not in there or there[name].root != each.root or there[name].ino != seen.get(name)
            }
        for name in NAMES:
            assert index.get(Slot(each, name)) == naive.slots.get(Slot(each, name))
    assert len(index) == len(naive.members)
    assert set(index.nameless()) == naive.members - set(naive.slots.values()) - {ROOT}

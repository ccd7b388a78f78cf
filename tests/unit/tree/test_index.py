"""The index: what a sender may rely on when names move, vanish, or are seen in an impossible order."""

from __future__ import annotations

import contextlib
import tracemalloc
from pathlib import Path

import pytest

from replicator.model import FileId, Kind, Slot
from replicator.tree.index import TreeIndex
from replicator.tree.stamps import Stamp
from replicator.tree.store import IndexStore, Told


def fid(ino: int, gen: int = 1) -> FileId:
    return FileId(0, 0, ino, gen)


ROOT, A, B, C, F, G = (fid(number) for number in (2, 10, 11, 12, 20, 21))


@pytest.fixture
def index() -> TreeIndex:
    """/a/b/f, /a/g, /c"""
    made = TreeIndex(ROOT)
    made.bind(Slot(ROOT, b"a"), A, Kind.DIRECTORY)
    made.bind(Slot(A, b"b"), B, Kind.DIRECTORY)
    made.bind(Slot(B, b"f"), F, Kind.FILE)
    made.bind(Slot(A, b"g"), G, Kind.FILE)
    made.bind(Slot(ROOT, b"c"), C, Kind.DIRECTORY)
    return made


def test_an_empty_tree_has_its_root_only() -> None:
    index = TreeIndex(ROOT)
    assert len(index) == 1
    assert index.root == ROOT
    assert index.is_member(ROOT)
    assert index.is_directory(ROOT)
    assert index.kind(ROOT) is Kind.DIRECTORY
    assert index.path(ROOT) == b""
    assert index.slots_of(ROOT) == ()
    assert index.nameless() == ()
    assert list(index.subtree(ROOT)) == [ROOT]


def test_what_was_bound_is_found_by_slot_and_by_path(index: TreeIndex) -> None:
    assert index.get(Slot(B, b"f")) == F
    assert index.get(Slot(B, b"nothing")) is None
    assert index.get(Slot(fid(99), b"f")) is None
    assert index.path(F) == b"a/b/f"
    assert index.path(B) == b"a/b"
    assert dict(index.children(A)) == {b"b": B, b"g": G}
    assert dict(index.children(F)) == {}
    assert index.kind(F) is Kind.FILE
    assert not index.is_directory(F)
    assert len(index) == 6


def test_kinds_other_than_files_are_kept() -> None:
    index = TreeIndex(ROOT)
    index.bind(Slot(ROOT, b"pipe"), F, Kind.FIFO)
    assert index.kind(F) is Kind.FIFO
    index.forget(F)
    index.bind(Slot(ROOT, b"file"), F, Kind.FILE)
    assert index.kind(F) is Kind.FILE


def test_the_same_number_with_another_generation_is_somebody_else(index: TreeIndex) -> None:
    reborn = fid(F.ino, 2)
    assert index.bind(Slot(B, b"f"), reborn, Kind.DIRECTORY) == F
    assert index.nameless() == (F,)
    assert index.kind(F) is Kind.FILE
    assert index.is_directory(reborn)


def test_hard_links_are_all_there_until_the_last_is_unbound(index: TreeIndex) -> None:
    for name in (b"one", b"two"):
        assert index.bind(Slot(C, name), F, Kind.FILE) is None
    assert set(index.slots_of(F)) == {Slot(B, b"f"), Slot(C, b"one"), Slot(C, b"two")}
    assert index.unbind(Slot(B, b"f")) == F
    assert index.unbind(Slot(C, b"one")) == F
    assert index.slots_of(F) == (Slot(C, b"two"),)
    assert index.nameless() == ()
    assert index.unbind(Slot(C, b"two")) == F
    assert index.slots_of(F) == ()
    assert index.nameless() == (F,)
    assert index.is_member(F)
    assert index.path(F) is None
    assert index.unbind(Slot(C, b"two")) is None


def test_a_displaced_id_is_returned_and_stays_a_member(index: TreeIndex) -> None:
    assert index.bind(Slot(A, b"g"), F, Kind.FILE) == G
    assert index.nameless() == (G,)
    index.bind(Slot(C, b"again"), G, Kind.FILE)
    assert index.nameless() == ()
    assert index.path(G) == b"c/again"


def test_binding_what_is_there_already_changes_nothing(index: TreeIndex) -> None:
    assert index.bind(Slot(B, b"f"), F, Kind.FILE) is None
    assert index.bind(Slot(A, b"b"), B, Kind.DIRECTORY) is None
    assert index.slots_of(F) == (Slot(B, b"f"),)
    assert index.path(F) == b"a/b/f"


def test_a_directory_leaves_its_old_slot_and_takes_its_content_along(index: TreeIndex) -> None:
    index.bind(Slot(C, b"moved"), B, Kind.DIRECTORY)
    assert index.get(Slot(A, b"b")) is None
    assert index.slots_of(B) == (Slot(C, b"moved"),)
    assert index.path(F) == b"c/moved/f"


def test_a_directory_without_a_name_keeps_its_content_until_it_is_forgotten(index: TreeIndex) -> None:
    index.unbind(Slot(A, b"b"))
    assert index.get(Slot(B, b"f")) == F
    assert index.path(F) is None
    index.bind(Slot(ROOT, b"back"), B, Kind.DIRECTORY)
    assert index.path(F) == b"back/f"


def test_two_directories_inside_each_other_hang_nowhere_and_can_be_put_right(index: TreeIndex) -> None:
    """/a/b becomes /b/a, and the new inner slot is looked at first."""
    index.bind(Slot(B, b"a"), A, Kind.DIRECTORY)
    assert index.path(A) is None
    assert index.path(F) is None
    assert set(index.subtree(A)) == {A, B, F, G}
    index.bind(Slot(ROOT, b"b"), B, Kind.DIRECTORY)
    assert index.path(G) == b"b/a/g"
    assert index.path(F) == b"b/f"


def test_forgetting_such_a_pair_ends(index: TreeIndex) -> None:
    index.bind(Slot(B, b"a"), A, Kind.DIRECTORY)
    assert set(index.forget(A)) == {A, B, F, G}
    assert set(index.subtree(ROOT)) == {ROOT, C}
    assert len(index) == 2


def test_a_path_is_found_through_any_slot_that_leads_to_the_root(index: TreeIndex) -> None:
    index.bind(Slot(C, b"link"), F, Kind.FILE)
    index.unbind(Slot(A, b"b"))
    assert index.path(F) == b"c/link"


def test_forgetting_a_subtree_spares_what_has_a_name_elsewhere(index: TreeIndex) -> None:
    index.bind(Slot(C, b"link"), F, Kind.FILE)
    gone = index.forget(A)
    assert next(iter(gone)) == A
    assert set(gone) == {A, B, G}
    assert index.slots_of(F) == (Slot(C, b"link"),)
    assert not index.is_member(B)
    assert index.get(Slot(ROOT, b"a")) is None
    assert len(index) == 3
    assert index.forget(A) == {}


def test_forgetting_ends_being_nameless(index: TreeIndex) -> None:
    index.unbind(Slot(A, b"g"))
    assert index.forget(G) == {G: Kind.FILE}
    assert index.nameless() == ()
    assert not index.is_member(G)
    with pytest.raises(KeyError):
        index.kind(G)


def test_a_subtree_lists_directories_before_their_content_and_a_hard_link_once(index: TreeIndex) -> None:
    index.bind(Slot(A, b"link"), F, Kind.FILE)
    seen = list(index.subtree(A))
    assert sorted(seen) == sorted([A, B, F, G])
    assert seen.index(A) < seen.index(B)
    assert list(index.subtree(F)) == [F]
    assert list(index.subtree(fid(99))) == []


def test_impossible_bindings_are_refused(index: TreeIndex) -> None:
    with pytest.raises(KeyError):
        index.bind(Slot(fid(99), b"x"), F, Kind.FILE)
    with pytest.raises(KeyError):
        index.bind(Slot(F, b"x"), G, Kind.FILE)
    with pytest.raises(ValueError, match="root"):
        index.bind(Slot(A, b"x"), ROOT, Kind.DIRECTORY)
    with pytest.raises(ValueError, match="root"):
        index.forget(ROOT)
    with pytest.raises(ValueError, match="not a directory"):
        index.bind(Slot(A, b"x"), F, Kind.DIRECTORY)
    assert index.path(F) == b"a/b/f"
    assert len(index) == 6


def test_children_cannot_be_changed_through_what_is_given(index: TreeIndex) -> None:
    index.children(A)[b"x"] = F
    assert index.get(Slot(A, b"x")) is None


def test_a_file_that_the_replica_has_costs_no_memory_and_little_disk(scratch: Path) -> None:
    count = 50_000
    with contextlib.closing(IndexStore(scratch / "index.sqlite")) as store:
        tracemalloc.start()
        try:
            store.settle(fid(2))
            index = TreeIndex(ROOT, store)
            for first in range(0, count, 1000):
                told = Told()
                for number in range(first, first + 1000):
                    slot, id = (
                        Slot(fid(2), b"a-name-of-usual-length-%d" % number),
                        fid(1 << 20 | number, 1 << 31 | number),
                    )
                    index.bind(slot, id, Kind.FILE)
                    told.slots[slot] = id, Kind.FILE
                    told.stamps[id] = Stamp(1, 2, 3)
                index.committed(store.commit([told], {}))
            used, _peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(index) == count + 1
        assert used < 4_000_000
    assert (scratch / "index.sqlite").stat().st_size / count < 200


@pytest.mark.parametrize("together", [True, False])
def test_an_older_state_that_is_told_late_does_not_show(scratch: Path, together: bool) -> None:
    """A name is taken, given and taken again; what was told between is on its way when the store is right by chance."""
    slot = Slot(ROOT, b"f")
    with contextlib.closing(IndexStore(scratch / "index.sqlite")) as store:
        store.settle(ROOT)
        index = TreeIndex(ROOT, store)
        index.bind(slot, F, Kind.FILE)
        index.committed(store.commit([Told({slot: (F, Kind.FILE)})], {}))
        index.unbind(slot)
        taken = Told({slot: None})
        index.bind(slot, F, Kind.FILE)
        given = Told({slot: (F, Kind.FILE)})
        index.unbind(slot)
        if together:
            index.committed(store.commit([taken, given], {}))
        else:
            index.committed(store.commit([taken], {}), later=[given])
            store.commit([given], {})
        assert index.get(slot) is None
        assert index.slots_of(F) == ()


def test_all_members_are_told_once_whatever_becomes_of_them_meanwhile(scratch: Path) -> None:
    with contextlib.closing(IndexStore(scratch / "index.sqlite")) as store:
        store.settle(ROOT)
        index = TreeIndex(ROOT, store)
        index.bind(Slot(ROOT, b"a"), A, Kind.DIRECTORY)
        index.bind(Slot(A, b"f"), F, Kind.FILE)
        told = Told({Slot(ROOT, b"a"): (A, Kind.DIRECTORY), Slot(A, b"f"): (F, Kind.FILE)})
        index.committed(store.commit([told], {}))
        index.bind(Slot(ROOT, b"g"), G, Kind.FILE)
        members = index.members()
        seen = [next(members)]
        later = Told({Slot(ROOT, b"g"): (G, Kind.FILE)})
        index.committed(store.commit([later], {}))
        seen += members
        assert sorted(seen) == sorted([ROOT, A, F, G])


DIRECTORY, INSIDE = Slot(ROOT, b"d"), Slot(A, b"f")
THERE = Told({DIRECTORY: (A, Kind.DIRECTORY), INSIDE: (F, Kind.FILE)})
GONE = Told({DIRECTORY: None}, dead=[A, F])


def _appear(index: TreeIndex) -> None:
    index.bind(DIRECTORY, A, Kind.DIRECTORY)
    index.bind(INSIDE, F, Kind.FILE)


def _twice_gone(store: IndexStore) -> TreeIndex:
    index = TreeIndex(ROOT, store)
    for _ in range(2):
        _appear(index)
        index.forget(A)
    return index


@pytest.mark.parametrize("together", [True, False])
def test_a_directory_that_goes_and_comes_back_before_the_store_has_heard_of_either(
    scratch: Path, together: bool
) -> None:
    """Its death takes the names in it: what the store was told of them before does not count."""
    with contextlib.closing(IndexStore(scratch / "index.sqlite")) as store:
        store.settle(ROOT)
        index = _twice_gone(store)
        _appear(index)
        for batch in [[THERE, GONE]] if together else [[THERE], [GONE]]:
            index.committed(store.commit(batch, {}), later=() if batch[-1] is GONE else [GONE])
            assert index.get(INSIDE) == F
            assert index.slots_of(F) == (INSIDE,)
        index.forget(A)
        for told, later in ((THERE, [GONE]), (GONE, [])):
            index.committed(store.commit([told], {}), later=later)
            assert not index.is_member(F)
            assert index.get(INSIDE) is None


def test_a_directory_that_is_forgotten_twice_stays_so_while_the_store_hears_of_the_first_time(scratch: Path) -> None:
    with contextlib.closing(IndexStore(scratch / "index.sqlite")) as store:
        store.settle(ROOT)
        index = _twice_gone(store)
        tolds = [THERE, GONE, THERE, GONE]
        for number, told in enumerate(tolds, 1):
            done = store.commit([told], {})
            if number > 2:  # asked before, the index would remember its answer
                assert not index.is_member(F)
                assert index.slots_of(F) == ()
            index.committed(done, later=tolds[number:])
        assert not index.is_member(F)
        assert list(index.changed()) == [ROOT]
        assert len(index) == 1


def test_a_name_that_went_while_its_directory_was_away_is_not_awaited_for_ever(scratch: Path) -> None:
    """Nobody is told of it, as the directory's death, and that of what was in it, have told enough."""
    with contextlib.closing(IndexStore(scratch / "index.sqlite")) as store:
        store.settle(ROOT)
        index = TreeIndex(ROOT, store)
        _appear(index)
        index.committed(store.commit([THERE], {}))
        index.forget(A)
        index.bind(DIRECTORY, A, Kind.DIRECTORY)
        died = Told({}, dead=[F])
        index.committed(store.commit([], {}), later=[died])
        assert index.pending(A)
        index.committed(store.commit([died], {}))
        assert not index.pending(A)
        assert index.get(INSIDE) is None


def test_a_name_that_the_store_never_had_is_not_awaited_for_ever(scratch: Path) -> None:
    """It went while its directory was away, and both before anybody was told."""
    with contextlib.closing(IndexStore(scratch / "index.sqlite")) as store:
        store.settle(ROOT)
        index = TreeIndex(ROOT, store)
        _appear(index)
        index.forget(A)
        index.bind(DIRECTORY, A, Kind.DIRECTORY)
        assert index.pending(A)
        index.committed(store.commit([Told({DIRECTORY: (A, Kind.DIRECTORY)})], {}))
        assert not index.pending(A)

"""What the planner does with the cases that a simpler one gets wrong, one by one."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

import pytest

from replicator.blocks import COMPARED_FROM
from replicator.errors import RemoteError
from replicator.mirror.names import Names
from replicator.mirror.plan import plan
from replicator.mirror.steps import (
    LIMBO,
    Adorn,
    Create,
    Doubt,
    Exchange,
    Link,
    Plan,
    Record,
    Rename,
    Rmdir,
    Stamp,
    Step,
    Unlink,
    Write,
    limbo_place,
)
from replicator.model import Attributes, Extent, Facts, FileId, InodeFact, Kind, Slot, SlotFact

ROOT = FileId(0, 0, 2, 0)
A, B, C, D = (FileId(0, 0, ino, 1) for ino in (11, 12, 13, 14))
X, Y, Z = (FileId(0, 0, ino, 1) for ino in (21, 22, 23))
ATTRIBUTES = Attributes(0o644, 0, 0, 5, 6)
FILE, DIRECTORY = Record(Kind.FILE, 3, 5, 6), Record(Kind.DIRECTORY, 0, 5)


LARGE = replace(FILE, size=COMPARED_FROM)


class Empty:
    """An inventory that knows the root alone."""

    root = ROOT

    def record(self, id: FileId) -> Record | None:
        return DIRECTORY if id == ROOT else None

    def bound(self, place: Slot) -> FileId | None:
        return None

    def places(self, id: FileId) -> Collection[Slot]:
        return ()

    def children(self, directory: FileId) -> Iterable[tuple[bytes, FileId]]:
        return ()


def replica(names: dict[Slot, FileId], records: dict[FileId, Record] | None = None) -> Names:
    """A known replica. Ids A to D are directories, X to Z files, unless `records` says otherwise."""
    made = Names(Empty())
    for place, id in names.items():
        default = DIRECTORY if id in (A, B, C, D) else FILE
        made.set_record(id, (records or {}).get(id, default))
        made.bind(place, id)
    return made


def at(parent: FileId, name: str) -> Slot:
    return Slot(parent, name.encode())


def fact(id: FileId, kind: Kind = Kind.FILE, **changes: object) -> InodeFact:
    made = InodeFact(id, kind, ATTRIBUTES, size=3 if kind is Kind.FILE else 0, whole=True)
    return replace(made, **changes)  # type: ignore[arg-type]


def planned(
    view: Names,
    slots: dict[Slot, FileId | None] | None = None,
    inodes: Iterable[InodeFact] = (),
    dead: Iterable[FileId] = (),
) -> Plan:
    facts = tuple(SlotFact(slot, id) for slot, id in (slots or {}).items())
    return plan(Facts(1, facts, tuple(inodes), tuple(dead)), view)


def kinds(steps: Iterable[Step]) -> list[type]:
    return [type(step) for step in steps if not isinstance(step, Stamp)]


def after(view: Names, steps: Iterable[Step]) -> dict[Slot, FileId]:
    """The names once the naming steps are taken, limbo's included."""
    for step in steps:
        match step:
            case Create(id):
                view.set_record(id, FILE)
                view.bind(step.place, id)
            case Rename() | Link() | Exchange() | Unlink() | Rmdir():
                view.take(step)
            case _:
                pass
    found: dict[Slot, FileId] = {}
    queue = [ROOT, LIMBO]
    while queue:
        directory = queue.pop()
        for name, id in view.children(directory):
            found[Slot(directory, name)] = id
            queue.append(id)
    return found


def test_a_swap_of_files_is_one_step() -> None:
    view = replica({at(ROOT, "x"): X, at(ROOT, "y"): Y})
    steps = planned(view, {at(ROOT, "x"): Y, at(ROOT, "y"): X}).steps
    assert kinds(steps) == [Exchange]
    assert after(view, steps) == {at(ROOT, "x"): Y, at(ROOT, "y"): X}


def test_a_swap_of_directories_at_different_depths_is_one_step() -> None:
    view = replica({at(ROOT, "a"): A, at(ROOT, "c"): C, at(C, "b"): B, at(A, "x"): X})
    steps = planned(view, {at(ROOT, "a"): B, at(C, "b"): A}).steps
    assert kinds(steps) == [Exchange]
    assert after(view, steps) == {at(ROOT, "a"): B, at(ROOT, "c"): C, at(C, "b"): A, at(A, "x"): X}


def test_a_cycle_of_three_never_leaves_a_name_empty() -> None:
    view = replica({at(ROOT, "x"): X, at(ROOT, "y"): Y, at(ROOT, "z"): Z})
    steps = planned(view, {at(ROOT, "x"): Z, at(ROOT, "y"): X, at(ROOT, "z"): Y}).steps
    assert not [step for step in steps if isinstance(step, Rename) and step.source.parent == ROOT]
    assert after(view, steps) == {at(ROOT, "x"): Z, at(ROOT, "y"): X, at(ROOT, "z"): Y}


def test_child_and_parent_change_places() -> None:
    view = replica({at(ROOT, "a"): A, at(A, "b"): B, at(B, "x"): X})
    slots: dict[Slot, FileId | None] = {at(ROOT, "a"): None, at(A, "b"): None, at(ROOT, "b"): B, at(B, "a"): A}
    assert after(view, planned(view, slots).steps) == {at(ROOT, "b"): B, at(B, "a"): A, at(B, "x"): X}


def test_child_takes_its_parents_name_and_gets_it_beneath() -> None:
    view = replica({at(ROOT, "a"): A, at(A, "a"): B})
    assert after(view, planned(view, {at(ROOT, "a"): B, at(A, "a"): None, at(B, "a"): A}).steps) == {
        at(ROOT, "a"): B,
        at(B, "a"): A,
    }


def test_a_directory_moves_into_its_sibling() -> None:
    view = replica({at(ROOT, "a"): A, at(ROOT, "b"): B})
    steps = planned(view, {at(ROOT, "a"): None, at(B, "a"): A}).steps
    assert kinds(steps) == [Rename]
    assert after(view, steps) == {at(ROOT, "b"): B, at(B, "a"): A}


@pytest.mark.parametrize(("old", "new"), [(X, A), (A, X)])
def test_a_file_and_a_directory_replace_each_other(old: FileId, new: FileId) -> None:
    view = replica({at(ROOT, "n"): old})
    kind = Kind.DIRECTORY if new is A else Kind.FILE
    steps = planned(view, {at(ROOT, "n"): new}, [fact(new, kind)], [old]).steps
    assert after(view, steps) == {at(ROOT, "n"): new}
    assert kinds(steps)[:2] == [Create, Exchange]


def test_the_dead_one_under_a_rename_goes_last() -> None:
    view = replica({at(ROOT, "tmp"): X, at(ROOT, "f"): Y})
    steps = planned(view, {at(ROOT, "tmp"): None, at(ROOT, "f"): X}, dead=[Y]).steps
    names = [step for step in steps if isinstance(step, Exchange | Unlink)]
    assert isinstance(names[0], Exchange)
    assert Unlink(Y, limbo_place(X), final=True) in steps
    assert after(view, steps) == {at(ROOT, "f"): X}


def test_a_last_name_that_goes_destroys_nothing_without_death() -> None:
    view = replica({at(ROOT, "f"): X, at(ROOT, "a"): A, at(A, "y"): Y})
    steps = planned(view, {at(ROOT, "f"): None, at(ROOT, "a"): None}).steps
    assert after(view, steps) == {limbo_place(X): X, limbo_place(A): A, at(A, "y"): Y}
    assert kinds(planned(view, {at(ROOT, "g"): X}).steps) == [Rename]
    steps = planned(view, {at(ROOT, "g"): X, at(ROOT, "h"): A}).steps
    assert after(view, steps) == {at(ROOT, "g"): X, at(ROOT, "h"): A, at(A, "y"): Y}


def test_hard_links_come_and_go() -> None:
    view = replica({at(ROOT, "a"): A})
    steps = planned(view, {at(ROOT, "x"): X, at(A, "x"): X}, [fact(X)]).steps
    assert kinds(steps) == [Create, Rename, Link]
    assert after(view, steps) == {at(ROOT, "a"): A, at(ROOT, "x"): X, at(A, "x"): X}
    steps = planned(view, {at(ROOT, "x"): None}).steps
    assert steps[0] == Unlink(X, at(ROOT, "x"))
    assert after(view, steps) == {at(ROOT, "a"): A, at(A, "x"): X}


def test_a_new_name_for_the_same_inode_is_no_step() -> None:
    view = replica({at(ROOT, "x"): X})
    assert not planned(view, {at(ROOT, "x"): X}).steps


def test_an_unknown_target_is_needed_and_the_old_one_stays() -> None:
    view = replica({at(ROOT, "x"): X})
    result = planned(view, {at(ROOT, "x"): Y})
    assert (list(result.needs), list(result.looks), result.steps) == ([Y], [at(ROOT, "x")], [])


def test_an_unknown_parent_is_needed_unless_nothing_is_there() -> None:
    view = replica({})
    result = planned(view, {at(A, "x"): X, at(B, "y"): None}, [fact(X)])
    assert list(result.needs) == [A]
    assert list(result.looks) == [at(A, "x")]
    assert kinds(result.steps) == [Create]


def test_deep_directories_and_their_files_come_in_one_epoch() -> None:
    view = replica({})
    slots: dict[Slot, FileId | None] = {at(C, "x"): X, at(B, "c"): C, at(A, "b"): B, at(ROOT, "a"): A}
    inodes = [fact(X), *(fact(id, Kind.DIRECTORY) for id in (C, B, A))]
    steps = planned(view, slots, inodes).steps
    assert [step.target for step in steps if isinstance(step, Rename)] == list(reversed(slots))


def test_directories_that_contain_each_other_are_looked_at_again() -> None:
    view = replica({at(ROOT, "a"): A, at(ROOT, "b"): B})
    result = planned(view, {at(A, "b"): B, at(B, "a"): A})
    assert set(result.looks) >= {at(A, "b"), at(B, "a")}
    assert after(view, result.steps) == {at(ROOT, "a"): A, at(ROOT, "b"): B}


def test_a_directory_at_two_places_is_at_the_later_one() -> None:
    view = replica({at(ROOT, "a"): A})
    result = planned(view, {at(ROOT, "b"): A, at(ROOT, "c"): A})
    assert after(view, result.steps) == {at(ROOT, "c"): A}
    assert set(result.looks) == {at(ROOT, "a"), at(ROOT, "b")}


def test_a_dead_directory_lets_its_living_children_go() -> None:
    view = replica({at(ROOT, "a"): A, at(A, "b"): B, at(A, "x"): X, at(B, "y"): Y, at(ROOT, "y"): Y})
    result = planned(view, {at(ROOT, "a"): None}, dead=[A])
    assert after(view, result.steps) == {
        limbo_place(B): B,
        limbo_place(X): X,
        at(B, "y"): Y,
        at(ROOT, "y"): Y,
    }


def test_a_dead_tree_goes_from_below() -> None:
    view = replica({at(ROOT, "a"): A, at(A, "b"): B, at(B, "x"): X})
    result = planned(view, dead=[A, X, B])
    assert [step for step in result.steps if not isinstance(step, Stamp)] == [
        Unlink(X, at(B, "x"), final=True),
        Rmdir(B, at(A, "b")),
        Rmdir(A, at(ROOT, "a")),
    ]
    assert set(result.looks) == {at(ROOT, "a"), at(A, "b"), at(B, "x")}


def test_what_has_a_name_is_not_dead() -> None:
    view = replica({at(ROOT, "x"): X})
    result = planned(view, {at(ROOT, "y"): X}, dead=[X])
    assert after(view, result.steps) == {at(ROOT, "x"): X, at(ROOT, "y"): X}


def test_the_bytes_of_a_waiting_inode_come_before_its_name() -> None:
    view = replica({limbo_place(X): X}, {X: Record(Kind.FILE, complete=False)})
    last = fact(X, data=(Extent(0, 3),))
    assert kinds(planned(view, {at(ROOT, "x"): X}, [last]).steps) == [Write, Adorn, Rename]
    result = planned(view, {at(ROOT, "x"): X}, [fact(X, partial=True, data=(Extent(0, 3),))])
    assert kinds(result.steps) == [Write]
    assert list(result.looks) == [at(ROOT, "x")]
    assert not result.needs


def test_what_gets_a_name_has_its_bytes_before() -> None:
    view = replica({at(ROOT, "x"): X, at(ROOT, "y"): Y})
    part = fact(X, whole=False, data=(Extent(1, 1),))
    steps = planned(view, {at(ROOT, "x"): None, at(ROOT, "z"): X}, [part]).steps
    assert kinds(steps) == [Write, Adorn, Rename]
    steps = planned(view, {at(ROOT, "y"): None}, [part]).steps
    assert kinds(steps) == [Rename, Write, Adorn]


def test_attributes_alone_write_nothing() -> None:
    view = replica({at(ROOT, "x"): X})
    assert kinds(planned(view, inodes=[fact(X, whole=False)]).steps) == [Adorn]


def test_bytes_for_an_unknown_inode_are_not_enough() -> None:
    result = planned(replica({}), {at(ROOT, "x"): X}, [fact(X, whole=False, data=(Extent(0, 1),))])
    assert (list(result.needs), list(result.looks), result.steps) == ([X], [at(ROOT, "x")], [])


@pytest.mark.parametrize(
    ("record", "same"),
    [
        (FILE, True),
        (replace(FILE, mtime_ns=4), False),
        (replace(FILE, size=4), False),
        (replace(FILE, ctime_ns=7), False),
        (replace(FILE, ctime_ns=None), False),
        (replace(FILE, suspect=True), False),
        (replace(FILE, complete=False), False),
    ],
)
def test_a_check_spares_the_bytes_only_of_what_is_certain(record: Record, same: bool) -> None:
    view = replica({at(ROOT, "x"): X}, {X: record})
    result = planned(view, {at(ROOT, "x"): X}, [fact(X, whole=False, check=True)])
    assert (kinds(result.steps), list(result.needs)) == (([Adorn], []) if same else ([], [X]))


@pytest.mark.parametrize(
    ("record", "deep", "doubted"),
    [
        (LARGE, False, False),
        (LARGE, True, True),
        (replace(LARGE, ctime_ns=None), False, True),
        (replace(LARGE, size=4), False, True),
        (replace(LARGE, suspect=True), False, True),
        (replace(LARGE, suspect=True, complete=False), False, True),
    ],
)
def test_the_content_of_a_large_file_is_doubted_instead_of_needed(record: Record, deep: bool, doubted: bool) -> None:
    view = replica({at(ROOT, "x"): X}, {X: record})
    facts = [fact(X, size=LARGE.size, whole=False, check=True, deep=deep)]
    result = planned(view, {at(ROOT, "x"): X}, facts)
    step: type[Step] = Doubt if doubted else Adorn
    assert (kinds(result.steps), list(result.doubts)) == ([step], [X] if doubted else [])
    assert (result.needs, result.looks) == ({}, {})


def test_what_has_no_name_or_is_small_is_needed() -> None:
    """A name would show what is in doubt; and to send little is cheaper than to ask."""
    check = fact(X, size=LARGE.size, whole=False, check=True, deep=True)
    nameless = replica({limbo_place(X): X}, {X: LARGE})
    assert list(planned(nameless, inodes=[check]).needs) == [X]
    small = replica({at(ROOT, "x"): X}, {X: FILE})
    assert list(planned(small, inodes=[replace(check, size=3)]).needs) == [X]
    assert list(planned(replica({}), inodes=[check]).needs) == [X]


def test_lost_content_is_mended_only_by_all_of_it() -> None:
    view = replica({at(ROOT, "x"): X}, {X: replace(FILE, complete=False, suspect=True)})
    assert list(planned(view, inodes=[fact(X, whole=False, data=(Extent(0, 1),))]).needs) == [X]
    assert kinds(planned(view, inodes=[fact(X)]).steps) == [Write, Adorn]


def test_times_of_directories_come_last() -> None:
    view = replica({at(ROOT, "a"): A, at(A, "x"): X, at(ROOT, "b"): B})
    result = planned(view, {at(A, "x"): None, at(B, "x"): X}, [fact(A, Kind.DIRECTORY), fact(X)], dead=[])
    assert [type(step) for step in result.steps[-2:]] == [Stamp, Stamp]
    assert {step.id for step in result.steps[-2:]} == {A, B}


def test_what_broke_off_in_limbo_is_put_right() -> None:
    view = replica({at(LIMBO, "odd"): X, limbo_place(X): Y, limbo_place(Z): Z, at(ROOT, "z"): Z})
    result = planned(view, {at(ROOT, "gone"): None})
    assert after(view, result.steps) == {limbo_place(X): X, limbo_place(Y): Y, at(ROOT, "z"): Z}


def test_an_inode_cannot_change_its_kind() -> None:
    with pytest.raises(RemoteError, match="kind"):
        planned(replica({at(ROOT, "x"): X}), inodes=[fact(X, Kind.DIRECTORY)])
    with pytest.raises(RemoteError, match="no directory"):
        planned(replica({at(ROOT, "x"): X}), {at(X, "y"): None})


def test_a_plan_planned_again_after_some_of_its_steps_ends_the_same() -> None:
    slots: dict[Slot, FileId | None] = {at(ROOT, "a"): B, at(A, "b"): None, at(B, "a"): A, at(ROOT, "x"): Y}
    start = {at(ROOT, "a"): A, at(A, "b"): B, at(ROOT, "x"): X, at(ROOT, "y"): Y}
    whole = replica(start)
    steps = planned(whole, slots, dead=[X]).steps
    wanted = after(whole, steps)
    for count in range(len(steps)):
        view = replica(start)
        after(view, steps[:count])
        again = planned(view, slots, dead=[X]).steps
        assert after(view, again) == wanted, f"after {count} steps"

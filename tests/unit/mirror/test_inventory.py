"""The replica's memory: what is committed survives, what is not does not, and layers hide each other rightly."""

from __future__ import annotations

from pathlib import Path

from replicator.mirror.intents import Intent, IntentLog
from replicator.mirror.inventory import Inventory
from replicator.mirror.records import lost
from replicator.mirror.steps import Record, limbo_place
from replicator.model import FileId, Kind, Slot

ROOT, A, X, Y = (FileId(0, 0, ino, 2**32) for ino in (2, 11, 21, 22))
FILE = Record(Kind.FILE, 2**40, -5, 2**65)


def opened(path: Path) -> Inventory:
    inventory = Inventory(path / "inventory.sqlite")
    inventory.set_root(ROOT, b"root")
    return inventory


def test_only_the_frozen_layer_is_committed(tmp_path: Path) -> None:
    inventory = opened(tmp_path)
    inventory.put(X, FILE, b"hx")
    inventory.bind(Slot(ROOT, b"\xff"), X)
    inventory.freeze()
    inventory.put(Y, FILE, b"hy")
    inventory.bind(Slot(ROOT, b"y"), Y)
    inventory.unbind(Slot(ROOT, b"\xff"), keep=True)
    inventory.bind(Slot(ROOT, b"z"), X)
    assert dict(inventory.children(ROOT)) == {b"y": Y, b"z": X}
    inventory.commit(note="1")
    assert dict(inventory.children(ROOT)) == {b"y": Y, b"z": X}
    inventory.close()
    inventory = opened(tmp_path)
    assert dict(inventory.children(ROOT)) == {b"\xff": X}
    assert inventory.record(X) == FILE
    assert inventory.by_handle(b"hx") == X
    assert inventory.record(Y) is None
    assert inventory.meta("note") == "1"
    inventory.close()


def test_a_thawed_layer_is_part_of_the_next_commit(tmp_path: Path) -> None:
    inventory = opened(tmp_path)
    inventory.put(X, FILE, b"hx")
    inventory.bind(Slot(ROOT, b"x"), X)
    inventory.owe_time(X, 7)
    inventory.freeze()
    inventory.unbind(Slot(ROOT, b"x"))
    assert inventory.record(X) is None
    inventory.thaw()
    inventory.commit()
    assert inventory.record(X) is None
    assert inventory.is_empty()
    inventory.close()


def test_times_tell_to_what_they_will_be_set_later(tmp_path: Path) -> None:
    inventory = opened(tmp_path)
    for id, handle in ((X, b"hx"), (Y, b"hy")):
        inventory.put(id, FILE, handle)
        inventory.bind(limbo_place(id), id)
        inventory.owe_time(id, 1)
    inventory.freeze()
    inventory.owe_time(X, 2)
    assert inventory.times() == [(X, 1, 2), (Y, 1, None)]
    assert inventory.owes_time(X)
    inventory.commit()
    assert not inventory.owes_time(Y)
    inventory.close()


def test_what_is_doubted_is_doubted_in_the_commit_too(tmp_path: Path) -> None:
    inventory = opened(tmp_path)
    for id, handle in ((X, b"hx"), (Y, b"hy")):
        inventory.put(id, FILE, handle)
        inventory.wrote(id)
    inventory.freeze()
    inventory.put(Y, FILE)  # written again since
    assert sorted(inventory.written()) == [X, Y]
    inventory.doubt(X)
    inventory.doubt(Y)
    inventory.commit()
    inventory.close()
    inventory = opened(tmp_path)
    assert [inventory.record(id) for id in (X, Y)] == [lost(FILE)] * 2
    assert {id for id, _ in inventory.unsound()} == {X, Y}
    inventory.close()


def test_a_forgotten_inode_takes_its_names_with_it(tmp_path: Path) -> None:
    inventory = opened(tmp_path)
    inventory.put(X, FILE, b"hx")
    for name in (b"x", b"y"):
        inventory.bind(Slot(ROOT, name), X)
    inventory.commit()
    inventory.forget(X)
    assert inventory.bound(Slot(ROOT, b"x")) is None
    assert inventory.by_handle(b"hx") is None
    assert not list(inventory.children(ROOT))
    inventory.close()


def test_a_new_handle_replaces_the_old_one(tmp_path: Path) -> None:
    inventory = opened(tmp_path)
    inventory.put(X, FILE, b"old")
    inventory.commit()
    inventory.put(X, FILE, b"new")
    assert (inventory.by_handle(b"old"), inventory.by_handle(b"new")) == (None, X)
    inventory.close()


def test_intents_are_read_back_until_they_are_settled(tmp_path: Path) -> None:
    log = IntentLog(tmp_path)
    first = Intent(1, [Slot(A, b"\n\xff"), limbo_place(X)], [X], [(X, b"\0h", FILE)])
    log.append(first)
    log.turn()
    log.append(Intent(2))
    log.close()
    log = IntentLog(tmp_path)
    assert log.read() == [first, Intent(2)]
    log.turn()
    assert [intent.epoch for intent in log.read()] == [1, 2]
    log.settle()
    assert log.read() == []
    log.close()


def test_half_a_line_is_no_intent(tmp_path: Path) -> None:
    log = IntentLog(tmp_path)
    log.append(Intent(1, [Slot(A, b"x")]))
    log.append(Intent(2, [Slot(A, b"y")]))
    path = tmp_path / "intents.0"
    path.write_bytes(path.read_bytes()[:-9])
    assert [intent.epoch for intent in log.read()] == [1]
    log.close()

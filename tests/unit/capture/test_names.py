"""Reading fanotify's bytes: whole, cut, with unknown additions, and garbage."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.capture.names import InodeLook, Overflow, SlotLook, parse
from replicator.model import FileId, Slot

ATTRIB, CREATE, DELETE, RENAME, ONDIR, OVERFLOWED = 0x4, 0x100, 0x200, 0x10000000, 0x40000000, 0x4000
TARGET, DIRECTORY_NAME, DIRECTORY, PIDFD, OLD_NAME, NEW_NAME = 1, 2, 3, 4, 10, 12


def id_of_handle(kind: int, handle: bytes) -> FileId:
    if kind != 1 or len(handle) != 8:
        raise ValueError("not a handle")
    ino, gen = struct.unpack("=II", handle)
    return FileId(0, 0, ino, gen)


def inode(number: int) -> FileId:
    return FileId(0, 0, number, number + 1)


def record(kind: int, number: int, name: bytes | None = None) -> bytes:
    body = b"fsidfsid" + struct.pack("=IiII", 8, 1, number, number + 1)
    if name is not None:
        body += name + b"\0"
        body += b"\0" * (-len(body) % 4)
    return struct.pack("=BBH", kind, 0, 4 + len(body)) + body


def event(mask: int, *records: bytes, version: int = 3) -> bytes:
    body = b"".join(records)
    return struct.pack("=IBBHQii", 24 + len(body), version, 0, 24, mask, -1, 77) + body


def slot(parent: int, name: bytes) -> Slot:
    return Slot(inode(parent), name)


def test_a_creation_names_slot_inode_and_directory() -> None:
    data = event(CREATE, record(DIRECTORY_NAME, 5, b"name"), record(TARGET, 9))
    looks, events = parse(data, id_of_handle)
    assert set(looks) == {SlotLook(slot(5, b"name"), inode(9)), InodeLook(inode(5)), InodeLook(inode(9))}
    assert events == 1


def test_a_rename_names_both_slots_and_both_directories() -> None:
    data = event(RENAME | ONDIR, record(OLD_NAME, 5, b"old"), record(NEW_NAME, 6, b"new"), record(TARGET, 9))
    assert set(parse(data, id_of_handle).looks) == {
        SlotLook(slot(5, b"old"), inode(9)),
        SlotLook(slot(6, b"new"), inode(9)),
        InodeLook(inode(5)),
        InodeLook(inode(6)),
        InodeLook(inode(9)),
    }


def test_attributes_name_only_the_inode() -> None:
    assert parse(event(ATTRIB, record(DIRECTORY_NAME, 5, b"n"), record(TARGET, 9)), id_of_handle).looks == [
        InodeLook(inode(9))
    ]
    assert parse(event(ATTRIB, record(TARGET, 9)), id_of_handle).looks == [InodeLook(inode(9))]
    assert parse(event(ATTRIB | ONDIR, record(DIRECTORY_NAME, 5, b".")), id_of_handle).looks == [InodeLook(inode(5))]
    assert parse(event(ATTRIB | ONDIR, record(DIRECTORY, 5)), id_of_handle).looks == [InodeLook(inode(5))]


def test_a_merged_event_is_one_look_at_the_slot() -> None:
    data = event(CREATE | DELETE | ATTRIB, record(DIRECTORY_NAME, 5, b"n"), record(TARGET, 9)) * 3
    batch = parse(data, id_of_handle)
    assert batch.events == 3
    assert len(batch.looks) == len(set(batch.looks)) == 3
    assert SlotLook(slot(5, b"n"), inode(9)) in batch.looks


def test_a_slot_without_known_inode_is_still_told() -> None:
    looks = parse(event(DELETE, record(DIRECTORY_NAME, 5, b"n")), id_of_handle).looks
    assert SlotLook(slot(5, b"n"), None) in looks


def test_unknown_records_are_skipped() -> None:
    unknown = struct.pack("=BBHI", 99, 0, 8, 1)
    pidfd = struct.pack("=BBHi", PIDFD, 0, 8, -1)
    data = event(CREATE, unknown, record(DIRECTORY_NAME, 5, b"n"), pidfd, record(TARGET, 9), unknown)
    looks = parse(data, id_of_handle).looks
    assert SlotLook(slot(5, b"n"), inode(9)) in looks
    assert Overflow() not in looks


def test_longer_metadata_of_later_kernels_is_skipped() -> None:
    body = record(DIRECTORY_NAME, 5, b"n") + record(TARGET, 9)
    data = struct.pack("=IBBHQii", 32 + len(body), 3, 0, 32, CREATE, -1, 7) + b"8 bytes!" + body
    looks = parse(data, id_of_handle).looks
    assert SlotLook(slot(5, b"n"), inode(9)) in looks
    assert Overflow() not in looks


def test_an_overflow_does_not_hide_its_neighbours() -> None:
    one = event(CREATE, record(DIRECTORY_NAME, 5, b"one"), record(TARGET, 9))
    two = event(CREATE, record(DIRECTORY_NAME, 5, b"two"), record(TARGET, 8))
    batch = parse(one + event(OVERFLOWED) + two, id_of_handle)
    assert batch.events == 3
    assert Overflow() in batch.looks
    assert SlotLook(slot(5, b"one"), inode(9)) in batch.looks
    assert SlotLook(slot(5, b"two"), inode(8)) in batch.looks


@pytest.mark.parametrize(
    "broken",
    [
        event(CREATE),
        event(CREATE, record(TARGET, 9)),
        event(ATTRIB),
        event(CREATE, record(DIRECTORY_NAME, 5, b"n").replace(struct.pack("=Ii", 8, 1), struct.pack("=Ii", 0, 0xFF))),
        event(CREATE, record(DIRECTORY_NAME, 5, b"n").replace(struct.pack("=Ii", 8, 1), struct.pack("=Ii", 99, 1))),
        event(CREATE, record(DIRECTORY_NAME, 5, b"name")[:-5]),
        event(CREATE, struct.pack("=BBH", TARGET, 0, 0)),
        event(CREATE, b"\1"),
    ],
)
def test_what_cannot_be_read_becomes_an_overflow_and_the_rest_is_read(broken: bytes) -> None:
    good = event(CREATE, record(DIRECTORY_NAME, 5, b"good"), record(TARGET, 9))
    batch = parse(good + broken + good, id_of_handle)
    assert Overflow() in batch.looks
    assert SlotLook(slot(5, b"good"), inode(9)) in batch.looks
    assert batch.events == 3


@pytest.mark.parametrize("tail", [b"x", b"\0" * 24, event(CREATE, version=4), event(CREATE)[:-1] + b""])
def test_a_tail_that_is_no_event_becomes_an_overflow(tail: bytes) -> None:
    good = event(CREATE, record(DIRECTORY_NAME, 5, b"good"), record(TARGET, 9))
    batch = parse(good + tail, id_of_handle)
    assert Overflow() in batch.looks
    assert SlotLook(slot(5, b"good"), inode(9)) in batch.looks


@given(st.binary(max_size=400))
def test_garbage_never_raises_and_never_passes_silently(data: bytes) -> None:
    batch = parse(data, id_of_handle)
    assert bool(batch.looks) == bool(data)


@given(st.data())
def test_one_flipped_byte_never_raises(data: st.DataObject) -> None:
    whole = bytearray(
        event(RENAME, record(OLD_NAME, 5, b"old"), record(NEW_NAME, 6, b"new"), record(TARGET, 9))
        + event(CREATE, record(DIRECTORY_NAME, 5, b"n" * 255), record(TARGET, 9))
    )
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    assert parse(bytes(whole), id_of_handle).looks


@given(st.lists(st.tuples(st.integers(1, 50), st.binary(min_size=1, max_size=255)), max_size=20))
def test_names_may_be_any_bytes(made: list[tuple[int, bytes]]) -> None:
    made = [(parent, name.replace(b"\0", b"0").replace(b"/", b"_")) for parent, name in made]
    made = [(parent, name) for parent, name in made if name not in (b".", b"..")]
    data = b"".join(event(CREATE, record(DIRECTORY_NAME, p, name), record(TARGET, 99)) for p, name in made)
    told = {look.slot for look in parse(data, id_of_handle).looks if isinstance(look, SlotLook)}
    assert told == {slot(parent, name) for parent, name in made}


def test_it_keeps_up_with_the_fastest_writers() -> None:
    data = b"".join(
        event(CREATE, record(DIRECTORY_NAME, 5, b"file-%d" % n), record(TARGET, n + 100)) for n in range(2000)
    )
    best = float("inf")
    for _ in range(10):
        begin = time.thread_time()
        assert parse(data, id_of_handle).events == 2000
        best = min(best, time.thread_time() - begin)
    assert 2000 / best > 60_000

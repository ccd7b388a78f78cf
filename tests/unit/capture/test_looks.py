"""Records of names become looks."""

from __future__ import annotations

import numpy as np

from replicator.capture.event import EVENT, EventFlag, EventKind, Events
from replicator.capture.looks import Timed, parted
from replicator.capture.names import InodeLook, ListLook, MovedLook, SlotLook
from replicator.model import FileId, Slot

PARENT, TARGET = FileId(0, 5, 100, 7), FileId(0, 5, 200, 9)


def record(kind: EventKind, ts: int, flags: int = 0, target: FileId | None = None, name: bytes = b"") -> Events:
    made = np.zeros(1, EVENT)
    made["kind"], made["ts"], made["flags"] = int(kind), ts, flags
    made["fs"], made["root"], made["ino"], made["gen"] = PARENT
    if target is not None:
        made["off"], made["len"] = target.ino, target.gen | len(name) << 32
    return made


def test_a_batch_without_names_is_left_alone() -> None:
    records = record(EventKind.WRITE, 1)
    rest, looks = parted(records, [])
    assert rest is records
    assert looks == []


def test_names_are_parted_from_bytes_in_their_order() -> None:
    records = np.concatenate(
        [
            record(EventKind.NAME, 1, target=TARGET, name=b"made"),
            record(EventKind.WRITE, 2),
            record(EventKind.NAME, 3, name=b"removed"),
        ]
    )
    rest, looks = parted(records, [b"made", b"removed"])
    assert rest["ts"].tolist() == [2]
    assert looks == [
        Timed(1, SlotLook(Slot(PARENT, b"made"), TARGET)),
        Timed(1, InodeLook(PARENT)),
        Timed(3, SlotLook(Slot(PARENT, b"removed"), None)),
        Timed(3, InodeLook(PARENT)),
    ]


def test_a_moved_inode_is_looked_at_by_all_its_names_first_and_owes_its_attributes() -> None:
    records = record(EventKind.NAME, 4, int(EventFlag.MOVED), TARGET, b"new")
    _, looks = parted(records, [b"new"])
    assert [timed.look for timed in looks] == [
        MovedLook(TARGET),
        InodeLook(TARGET),
        SlotLook(Slot(PARENT, b"new"), TARGET),
        InodeLook(PARENT),
    ]


def test_a_name_that_could_not_be_told_is_any_name() -> None:
    _, looks = parted(record(EventKind.NAME, 5), [b""])
    assert [timed.look for timed in looks] == [ListLook(PARENT), InodeLook(PARENT)]

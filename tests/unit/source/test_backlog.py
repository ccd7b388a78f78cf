"""Who wrote what is owed: every byte once, from the first write until it is durable."""

from __future__ import annotations

import numpy as np

from replicator.capture.event import EVENT, EventKind
from replicator.dirty.merge import merge
from replicator.dirty.writers import Writers
from replicator.model import Answer, Attributes, FileId, InodeFact, Kind, Slot
from replicator.source.backlog import writers
from replicator.source.flight import Part
from replicator.source.outbox import Outbox
from replicator.tree.exclude import Exclude

ROOT = FileId(0, 0, 2, 0)
NAMES = {1: "dd", 2: "cp", 3: "cp"}
GROUPS = {10: "/", 11: "/web"}


def outbox(files: int = 3) -> Outbox:
    """With files 11, 12, ... in the tree that owe nothing."""
    made = Outbox(ROOT, Exclude(()), writers=Writers(NAMES.get, GROUPS.get))
    for number in range(files):
        made.index.bind(Slot(ROOT, b"%d" % number), FileId(0, 0, 11 + number, 1), Kind.FILE)
    return made


def write(box: Outbox, ino: int, pid: int, length: int, cgroup: int = 10, offset: int = 0) -> None:
    batch = np.zeros(1, EVENT)
    batch["ts"], batch["kind"], batch["ino"], batch["gen"] = 1, EventKind.WRITE, ino, 1
    batch["off"], batch["len"], batch["pid"], batch["cgroup"] = offset, length, pid, cgroup
    merge(batch, box.table, box.index.is_member, box.outsiders, box.writers)


def told(box: Outbox) -> list[tuple[str | None, str | None, int, int]]:
    rows, estimated = writers(box, 20)
    assert not estimated
    return [(row["process"], row["container"], row["files"], row["bytes"]) for row in rows]


def test_processes_of_one_name_in_one_group_are_one_row_and_the_largest_is_first() -> None:
    box = outbox()
    write(box, 11, 1, 100)
    write(box, 12, 2, 300)
    write(box, 13, 3, 50)
    write(box, 13, 3, 7, cgroup=11, offset=1000)
    assert told(box) == [("cp", "/", 2, 350), ("dd", "/", 1, 100), ("cp", "/web", 1, 7)]
    rows, _ = writers(box, 1)
    assert [(row["processes"], row["pid"]) for row in rows] == [(2, None)]
    assert writers(box, 3)[0][1]["pid"] == 1


def test_bytes_written_again_and_again_are_owed_once() -> None:
    box = outbox()
    for _ in range(10):
        write(box, 11, 1, 100)
    assert told(box) == [("dd", "/", 1, 100)]
    for _ in range(30):
        write(box, 11, 2, 100)
    assert told(box) == [("cp", "/", 1, 75), ("dd", "/", 1, 25)]


def test_a_file_is_owed_by_its_writers_until_it_is_durable() -> None:
    box = outbox()
    write(box, 11, 1, 100)
    expected = [("dd", "/", 1, 100)]
    (flush,) = box.reads.begin(1, 10)
    assert told(box) == expected
    attributes = Attributes(0o644, 0, 0, 0, 0)
    box.reads.done(Part(flush, InodeFact(flush.owed.id, Kind.FILE, attributes, 100), [(0, b"x" * 100)]), 1)
    assert box.epochs.compose() is not None
    assert told(box) == expected
    box.disconnected()
    assert told(box) == expected
    (flush,) = box.reads.begin(1, 10)
    box.reads.done(Part(flush, InodeFact(flush.owed.id, Kind.FILE, attributes, 100), [(0, b"x" * 100)]), 1)
    assert box.epochs.compose() is not None
    box.applied(Answer(box.epochs.last), 2)
    assert told(box) == expected
    box.durable(box.epochs.last, 3)
    assert told(box) == []


def test_who_wrote_a_new_file_is_known() -> None:
    box = outbox(0)
    box.resolver.complete = True
    write(box, 11, 1, 100)
    assert told(box) == []
    box._welcome(FileId(0, 0, 11, 1), 1, None)
    assert told(box) == [("dd", "/", 1, 100)]


def test_a_large_backlog_is_estimated() -> None:
    box = outbox(1000)
    for number in range(1000):
        write(box, 11 + number, 1, 10)
    rows, estimated = writers(box, 20, sample=100)
    assert estimated
    assert [(row["files"], row["bytes"]) for row in rows] == [(1000, 10_000)]


def test_what_nobody_wrote_has_no_row() -> None:
    box = outbox(1)
    box.table.mark(FileId(0, 0, 11, 1), 1).mark_whole()
    assert told(box) == []

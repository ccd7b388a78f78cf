"""Everything is offered for comparison, in whatever order it is owed, although little may be out to be read at once."""

from __future__ import annotations

from replicator.model import Attributes, FileId, InodeFact, Kind, Slot
from replicator.source.flight import Part
from replicator.source.outbox import Outbox
from replicator.tree.exclude import Exclude

ROOT, UPPER, LOWER = FileId(0, 0, 2, 0), FileId(0, 0, 10, 1), FileId(0, 0, 11, 1)
FILES = [FileId(0, 0, 100 + number, 1) for number in range(50)]
ROOM = 8
ATTRIBUTES = Attributes(0o644, 0, 0, 0, 0)


def outbox() -> Outbox:
    """Files below a directory in a directory, all of which is to be compared; the files are owed first."""
    box = Outbox(ROOT, Exclude(()))
    for slot, id in ((Slot(ROOT, b"upper"), UPPER), (Slot(UPPER, b"lower"), LOWER)):
        box.index.bind(slot, id, Kind.DIRECTORY)
    for id in FILES:
        box.index.bind(Slot(LOWER, id.text().encode()), id, Kind.FILE)
        box.table.mark(id, 1)
    box.checking = True
    for id in box.index.subtree(ROOT):
        box.suspicion.offer(id, 1, None)
    return box


def turn(box: Outbox, now: int) -> set[FileId]:
    """Read what may be read, and send what may be sent; the inodes that were."""
    if ROOM - len(box.reads) > 0 or box.reads.readable or box.reads.sought:
        for flush in box.reads.begin(now, max(0, ROOM - len(box.reads))):
            id = flush.owed.id
            kind = Kind.FILE if id in FILES else Kind.DIRECTORY
            box.reads.done(Part(flush, InodeFact(id, kind, ATTRIBUTES, 0, check=flush.owed.check), []), now)
    epoch = box.epochs.compose()
    return {fact.id for fact in epoch[0].inodes} if epoch is not None else set()


def test_files_that_wait_for_their_directory_do_not_keep_it_from_being_read() -> None:
    box = outbox()
    told: set[FileId] = set()
    for now in range(2, 100):
        told |= turn(box, now)
        assert len(box.reads) <= 2 * ROOM
    assert told == {ROOT, UPPER, LOWER, *FILES}
    assert not box.reads.readable


def test_a_directory_that_could_not_be_read_is_waited_for_without_haste() -> None:
    box = outbox()
    turn(box, 2)
    box.pace.rest(LOWER, 1000)
    for now in range(3, 50):
        turn(box, now)
    assert not box.reads.readable
    assert box.next_try(50) == 1000
    told: set[FileId] = set()
    for now in range(1001, 1100):
        told |= turn(box, now)
    assert told >= {LOWER, *FILES}


def test_a_lost_connection_in_the_middle_changes_nothing() -> None:
    box = outbox()
    told: set[FileId] = set()
    for now in range(2, 200):
        if now in (4, 5, 9):
            box.disconnected()
            told.clear()
        told |= turn(box, now)
    assert told == {ROOT, UPPER, LOWER, *FILES}

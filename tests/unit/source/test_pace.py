"""When an inode may be read again."""

from __future__ import annotations

from replicator.dirty.generations import Generations
from replicator.dirty.table import DirtyTable
from replicator.model import FileId
from replicator.source.pace import RETRY_FIRST, RETRY_LAST, Pace

FILE = FileId(0, 0, 12, 1)


def test_failures_are_tried_again_later_and_later_up_to_a_limit() -> None:
    pace, now = Pace(), 0
    delays = []
    table = DirtyTable(Generations())
    table.mark(FILE, 0)
    for _ in range(10):
        pace.defer(FILE, now)
        assert not pace.may_try(FILE, now)
        due = pace.next_due(now, table)
        assert due is not None
        delays.append(due - now)
        now = due
        assert pace.may_try(FILE, now)
    assert delays[0] == RETRY_FIRST
    assert delays == sorted(delays)
    assert delays[-1] == RETRY_LAST
    assert pace.stuck() == [FILE]
    pace.succeeded(FILE)
    assert pace.stuck() == []
    assert pace.may_try(FILE, 0)


def test_another_connection_tries_everything_at_once() -> None:
    pace = Pace()
    pace.defer(FILE, 0)
    pace.retry_all()
    assert pace.may_try(FILE, 0)


def test_a_costly_inode_rests() -> None:
    pace = Pace()
    pace.rest(FILE, 100)
    assert not pace.may_try(FILE, 99)
    assert pace.may_try(FILE, 100)


def test_what_is_not_owed_wakes_nobody() -> None:
    pace = Pace()
    pace.defer(FILE, 0)
    assert pace.next_due(0, DirtyTable(Generations()), set()) is None
    assert pace.next_due(0, DirtyTable(Generations()), {FILE}) == RETRY_FIRST


def test_what_could_have_been_tried_wakes_nobody() -> None:
    """Without a connection it would be for ever due."""
    pace = Pace()
    pace.rest(FILE, 100)
    assert pace.next_due(99, {FILE}) == 100
    assert pace.next_due(100, {FILE}) is None


def test_quiet_inodes_are_given_once_in_order() -> None:
    pace = Pace()
    other = FileId(0, 0, 13, 1)
    pace.unsettled(FILE, 10)
    pace.unsettled(other, 20)
    assert pace.quiet(before=15, most=10) == [FILE]
    assert pace.quiet(before=15, most=10) == []
    pace.unsettled(FILE, 30)
    assert pace.quiet(before=40, most=1) == [other]
    assert pace.quiet(before=40, most=1) == [FILE]

"""Putting an epoch together: exactly what was declared, or nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest

from replicator.errors import RemoteError
from replicator.link import message as m
from replicator.link.epoch import SHORT, TOGETHER, Epoch, EpochAssembler, covers, declared, messages
from replicator.model import Attributes, Extent, Facts, FileId, InodeFact, Kind

PLAIN = Attributes(0o644, 0, 0, 0, 0)


def facts(*ranges: tuple[tuple[int, int], ...], epoch: int = 1) -> Facts:
    return Facts(
        epoch,
        inodes=tuple(
            InodeFact(FileId(0, 0, ino, 0), Kind.FILE, PLAIN, 0, data=tuple(Extent(*pair) for pair in pairs))
            for ino, pairs in enumerate(ranges)
        ),
    )


TWO = facts(((0, 3), (10, 2)), (), ((5, 4),))
GOOD: list[m.Message] = [
    m.FactsFrame(TWO),
    m.Data(1, 0, 0, b"abc"),
    m.Data(1, 0, 10, b"de"),
    m.Data(1, 2, 5, b"fghi"),
    m.End(1, 3, 9),
]


def run(said: list[m.Message], limit: int = 100) -> Epoch | None:
    assembler = EpochAssembler(limit)
    done = None
    for message in said:
        assert done is None
        done = assembler.add(message)
    return done


def test_facts_data_end_is_an_epoch() -> None:
    assert run(GOOD) == Epoch(TWO, ((0, 0, b"abc"), (0, 10, b"de"), (2, 5, b"fghi")))


def test_a_range_may_come_in_pieces() -> None:
    said = [GOOD[0], m.Data(1, 0, 0, b"a"), m.Data(1, 0, 1, b"bc"), *GOOD[2:4], m.End(1, 4, 9)]
    done = run(said)
    assert done is not None
    assert done.payload[:2] == ((0, 0, b"a"), (0, 1, b"bc"))


@pytest.mark.parametrize("cuts", [(), (1,), (3,), (4,), (5,), (2, 8)])
def test_bytes_go_on_from_range_to_range(cuts: tuple[int, ...]) -> None:
    at = [(0, 0), (0, 1), (0, 2), (0, 10), (0, 11), (2, 5), (2, 6), (2, 7), (2, 8)]
    edges = [0, *cuts, 9]
    pieces = [m.Data(1, *at[start], b"abcdefghi"[start:end]) for start, end in pairwise(edges)]
    done = run([GOOD[0], *pieces, m.End(1, len(pieces), 9)])
    assert done is not None
    assert covers(TWO, done.payload)


def test_short_pieces_travel_together_and_long_ones_by_themselves() -> None:
    long = bytes(SHORT)
    what = facts(((0, 3), (10, 2)), ((0, SHORT), (SHORT + 5, 4)), ((7, 1),))
    said: list[m.Message] = list(
        messages(what, [(0, 0, b"abc"), (0, 10, b"de"), (1, 0, long), (1, SHORT + 5, b"fghi"), (2, 7, b"j")])
    )
    assert [(one.index, one.offset, bytes(one.data)) for one in said if isinstance(one, m.Data)] == [
        (0, 0, b"abcde"),
        (1, 0, long),
        (1, SHORT + 5, b"fghij"),
    ]
    assert run(said, limit=2 * SHORT) == Epoch(
        what, ((0, 0, b"abc"), (0, 10, b"de"), (1, 0, long), (1, SHORT + 5, b"fghi"), (2, 7, b"j"))
    )


def test_what_travels_together_has_a_limit() -> None:
    count = 3 * TOGETHER // 4096
    what = facts(tuple((number * 8192, 4096) for number in range(count)))
    said = list(messages(what, [(0, number * 8192, bytes(4096)) for number in range(count)]))
    assert [len(one.data) for one in said if isinstance(one, m.Data)] == [TOGETHER] * 3


def test_epochs_follow_each_other() -> None:
    assembler = EpochAssembler()
    for number in (1, 2, 3):
        what = facts(((0, 1),), epoch=number)
        found = [assembler.add(one) for one in messages(what, [(0, 0, b"x")])]
        assert found == [None, None, Epoch(what, ((0, 0, b"x"),))]
        assert assembler.idle


BAD = {
    "data first": GOOD[1:],
    "end first": [m.End(1, 0, 0)],
    "facts twice": [GOOD[0], GOOD[0]],
    "no data": [GOOD[0], m.End(1, 0, 0)],
    "a range is missing": [*GOOD[:2], GOOD[3]],
    "another order": [GOOD[0], GOOD[2]],
    "another inode": [GOOD[0], m.Data(1, 1, 0, b"abc")],
    "an inode that is not there": [GOOD[0], m.Data(1, 9, 0, b"abc")],
    "another offset": [GOOD[0], m.Data(1, 0, 1, b"bc")],
    "beyond the last range": [GOOD[0], m.Data(1, 0, 0, b"abcdefghij")],
    "the second range first": [GOOD[0], m.Data(1, 0, 10, b"deabc")],
    "a piece again": [GOOD[0], m.Data(1, 0, 0, b"ab"), m.Data(1, 0, 0, b"ab")],
    "the last piece is missing": [*GOOD[:3], m.Data(1, 2, 5, b"fgh"), m.End(1, 3, 8)],
    "more than declared": [*GOOD[:4], m.Data(1, 2, 9, b"j")],
    "another epoch's data": [GOOD[0], m.Data(2, 0, 0, b"abc")],
    "another epoch's end": [*GOOD[:4], m.End(2, 3, 9)],
    "too few frames": [*GOOD[:4], m.End(1, 4, 9)],
    "too few bytes": [*GOOD[:4], m.End(1, 3, 10)],
    "something else in between": [GOOD[0], m.Ping(1)],
}


@pytest.mark.parametrize("said", BAD.values(), ids=BAD.keys())
def test_anything_else_is_a_remote_error(said: list[m.Message]) -> None:
    with pytest.raises(RemoteError):
        run(said)


def test_too_large_an_epoch_is_refused_by_its_facts_alone() -> None:
    assert run(GOOD, limit=9)
    with pytest.raises(RemoteError, match="more than the 8 allowed"):
        run(GOOD[:1], limit=8)
    with pytest.raises(RemoteError):
        run([m.FactsFrame(facts(((0, 2**63 - 1),), ((0, 2**63 - 1),)))])


def test_declared_is_the_sum_of_all_ranges() -> None:
    assert declared(TWO) == 9


def test_covers_tells_a_complete_payload_from_others() -> None:
    assert covers(TWO, [(0, 0, b"abc"), (0, 10, b"de"), (2, 5, b"fghi")])
    assert covers(facts(), [])
    assert not covers(TWO, [(0, 0, b"abc"), (0, 10, b"de")])
    assert not covers(TWO, [(0, 0, b"abc"), (0, 10, b"d"), (2, 5, b"fghi")])
    assert not covers(facts(), [(0, 0, b"x")])

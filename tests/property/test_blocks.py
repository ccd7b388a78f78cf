"""Content by blocks against a naive comparison, on real sparse files; and what liars say of blocks."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator import blocks
from replicator.blocks import DIGEST, Span, describe, judge, read_span, read_verdict
from replicator.dirty.ranges import RangeSet
from replicator.errors import RemoteError
from replicator.model import Extent

PAGE = 4096


@contextlib.contextmanager
def a_file(pieces: list[tuple[int, str]], size: int) -> Iterator[int]:
    """An open file with these pieces; holes elsewhere."""
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        os.truncate(file.fileno(), size)
        for at, data in pieces:
            os.pwrite(file.fileno(), DATA[data], at)
        yield file.fileno()


DATA = {"a": b"a" * PAGE, "b": b"b" * PAGE, "zeros": bytes(PAGE), "short": b"c" * 5, "long": b"d" * (3 * PAGE)}


def content(fd: int) -> bytes:
    return os.pread(fd, 1 << 30, 0)


pieces = st.lists(
    st.tuples(
        st.integers(0, 40).map(lambda page: page * PAGE),
        st.sampled_from(["a", "b", "zeros", "short", "long"]),
    ),
    max_size=8,
)
sizes = st.integers(0, 40 * PAGE)


@given(pieces, pieces, sizes, sizes, st.sampled_from([PAGE, 2 * PAGE, 8 * PAGE]), st.integers(1, 30))
@settings(max_examples=150, deadline=None)
def test_what_differs_is_found_and_nothing_else(
    mine: list[tuple[int, str]],
    theirs: list[tuple[int, str]],
    my_size: int,
    their_size: int,
    block: int,
    budget: int,
) -> None:
    with a_file(mine, my_size) as source, a_file(theirs, their_size) as replica:
        here, there = content(source), content(replica)
        size, at = len(here), 0
        differ = RangeSet()
        with mock.patch.object(blocks, "SPAN", 4 * PAGE):
            while at < size:
                span = describe(source, at, size, block)
                assert (span.at, at < span.to <= size) == (at, True)
                assert span.to == size or span.to % block == 0
                assert read_span(span.tree()) == span
                verdict = judge(replica, span, budget * PAGE)
                assert (
                    read_verdict(span, {"to": verdict.to, "differ": [n for e in verdict.differ for n in e]}) == verdict
                )
                for extent in verdict.differ:
                    differ.add(extent.offset, extent.end)
                at = verdict.to
        padded = there.ljust(size, b"\0")
        for start in range(0, size, block):
            end = min(start + block, size)
            same = here[start:end] == padded[start:end]
            beyond = end > len(there) and any(span_is_data(source, start, end))
            assert differ.covers(start, end) == (not same or beyond), (start, end)


def span_is_data(fd: int, start: int, end: int) -> Iterator[bool]:
    """Whether there is data, so that a replica that ends before is told to differ, be it of zeros."""
    try:
        yield os.lseek(fd, start, os.SEEK_DATA) < end
    except OSError:
        yield False


def test_a_huge_hole_costs_nothing() -> None:
    with a_file([(1 << 41, "a")], (1 << 41) + PAGE) as source, a_file([(1 << 41, "b")], (1 << 41) + PAGE) as replica:
        span = describe(source, 0, (1 << 41) + PAGE, blocks.COARSE)
        assert (span.to, len(span.digests)) == ((1 << 41) + PAGE, DIGEST)
        assert judge(replica, span).differ == (Extent(1 << 41, PAGE),)


def test_a_full_replica_of_a_hole_is_judged_in_parts() -> None:
    size = 4 * blocks.COARSE
    with a_file([], size) as source, a_file([], size) as replica:
        os.pwrite(replica, bytes(size), 0)
        span = describe(source, 0, size, blocks.COARSE)
        assert span.digests == b""
        verdict = judge(replica, span, budget=blocks.COARSE)
        assert verdict == blocks.Verdict(blocks.COARSE)
        assert read_verdict(span, {"to": verdict.to}) == verdict


GOOD: dict[str, Any] = Span(8192, 8192 * 4, 8192, (Extent(16384, 8192),), bytes(2 * DIGEST)).tree()


@pytest.mark.parametrize(
    "wrong",
    [
        {"digests": ""},
        {"digests": GOOD["digests"][:-4]},
        {"digests": "no base64"},
        {"at": 1},
        {"at": 8192 * 5},
        {"to": 8192 * 40},
        {"to": 1 << 62},
        {"block": 0},
        {"block": 1 << 30},
        {"holes": [0, 8192]},
        {"holes": [8192 * 3, 8192 * 2]},
        {"holes": [8193, 8192]},
        {"holes": [8192, 1]},
        {"holes": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_span_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    assert read_span(GOOD).tree() == GOOD
    with pytest.raises(RemoteError):
        read_span({**GOOD, **wrong})

"""Notices of rtnetlink, as the kernel lays them out."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.link.watch import came_up

NEW_LINK, GONE_LINK, NEW_ADDRESS, GONE_ADDRESS, NEW_ROUTE, GONE_ROUTE, DONE = 16, 17, 20, 21, 24, 25, 3
UP, RUNNING, LOWER_UP = 0x1, 0x40, 0x10000


def notice(kind: int, body: bytes = b"") -> bytes:
    text = struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body
    return text + bytes(-len(text) % 4)


def link(kind: int, flags: int) -> bytes:
    return notice(kind, struct.pack("=BxHiII", 0, 1, 7, flags, 0) + b"\x08\0\x03\0eth0")


QUIET = [link(NEW_LINK, UP), link(NEW_LINK, LOWER_UP), link(GONE_LINK, UP | LOWER_UP), notice(GONE_ADDRESS, b"12345")]
QUIET += [notice(GONE_ROUTE), notice(DONE, b"1")]
LOUD = [link(NEW_LINK, UP | RUNNING | LOWER_UP), notice(NEW_ADDRESS, b"1"), notice(NEW_ROUTE)]


@given(st.lists(st.sampled_from(QUIET)))
def test_what_went_away_is_no_news(notices: list[bytes]) -> None:
    assert not came_up(b"".join(notices))


@given(st.lists(st.sampled_from(QUIET)), st.sampled_from(LOUD), st.lists(st.sampled_from(QUIET)))
def test_what_came_up_is_seen_among_others(before: list[bytes], news: bytes, after: list[bytes]) -> None:
    assert came_up(b"".join([*before, news, *after]))


@pytest.mark.parametrize("cut", [1, 15, 17, 20])
def test_what_is_cut_short_counts_as_news(cut: int) -> None:
    assert came_up(link(GONE_LINK, 0) + link(NEW_LINK, 0)[:cut])
    assert came_up(struct.pack("=IHHII", 3, GONE_LINK, 0, 0, 0))


@given(st.binary(max_size=200))
def test_nothing_is_too_strange(notices: bytes) -> None:
    assert came_up(notices) in (True, False)

"""Content by blocks: what both sides make of a part of a file to find out where they differ.

A `Span` describes a part of the source's file: which of its blocks are holes, and a digest of each other one. Taken
with `describe` from an open file, sent as JSON, and judged with `judge` against the replica's file. The digests are
strong: who may write to a file must not be able to make two contents that look the same (docs/decisions/0021).

Blocks lie at multiples of their size. Only content counts: a hole and zeros are the same.
"""

from __future__ import annotations

import binascii
import errno
import hashlib
import os
from dataclasses import dataclass
from typing import Any

from replicator.dirty.ranges import RangeSet
from replicator.link import strict
from replicator.model import END_OF_FILE, Extent

COARSE = 1 << 20
"""Bytes of a block at first."""
FINE = 8 << 10
"""Bytes of a block within a coarse one that differs."""
SPAN = 8 << 20
"""Bytes of data (holes cost nothing) that a span has at most: what is read for one question."""
COMPARED_FROM = 256 << 10
"""Smaller files are sent whole: that costs less than asking."""
DIGEST = 20
"""Bytes of a digest."""

_ZEROS = bytes(COARSE)
_KEYS = frozenset({"at", "to", "block", "holes", "digests"})


def digest(data: bytes) -> bytes:
    """Of the bytes of one block."""
    return hashlib.sha256(data).digest()[:DIGEST]


@dataclass(frozen=True, slots=True)
class Span:
    """The blocks of a file in [at, to). `at` is a multiple of `block`; `to` too, or the end of the file."""

    at: int
    to: int
    block: int
    holes: tuple[Extent, ...] = ()
    """Runs of blocks that are only a hole."""
    digests: bytes = b""
    """Of the other blocks, in their order, DIGEST bytes each."""

    def data(self) -> RangeSet:
        """The blocks that have digests."""
        ranges = RangeSet([(self.at, self.to)])
        for hole in self.holes:
            ranges.remove(hole.offset, hole.end)
        return ranges

    def tree(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "at": self.at,
            "to": self.to,
            "block": self.block,
            "holes": [number for hole in self.holes for number in hole],
            "digests": binascii.b2a_base64(self.digests, newline=False).decode("ascii"),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a span: blocks up to `to` were compared, `differ` are those that are not the same."""

    to: int
    differ: tuple[Extent, ...] = ()


def read_span(value: Any) -> Span:
    """A span that a stranger sent. RemoteError if it is not one."""
    tree = strict.whole_object(value, _KEYS, "a span of blocks")
    block = strict.number(tree.get("block"), "a block's size", low=1, high=COARSE)
    at = strict.number(tree.get("at"), "an offset")
    to = strict.number(tree.get("to"), "an offset behind the first", low=at)
    holes = strict.extents(tree.get("holes"))
    digests = strict.blob(tree.get("digests"), "digests", 2 * SPAN // FINE * DIGEST)
    span = Span(at, to, block, holes, digests)
    edges = [at, *(hole.offset for hole in holes), *(hole.end for hole in holes if hole.end != to)]
    if any(edge % block for edge in edges) or any(hole.offset < at or hole.end > to for hole in holes):
        strict.bad("blocks at multiples of their size", value)
    ranges = span.data()
    if ranges.total > SPAN + block:
        strict.bad("no more data than a span may have", value)
    if sum(-(-(end - start) // block) for start, end in ranges) * DIGEST != len(digests):
        strict.bad("a digest for each block", value)
    return span


def read_verdict(span: Span, tree: dict[str, Any]) -> Verdict:
    """What a stranger says of this span. RemoteError if it cannot be."""
    to = strict.number(tree.get("to"), "how far it was compared", low=min(span.at + 1, span.to), high=span.to)
    differ = strict.extents(tree.get("differ", []))
    if differ and not span.at <= differ[0].offset <= differ[-1].end <= to:
        strict.bad("ranges within what was asked for", differ)
    return Verdict(to, differ)


def describe(fd: int, at: int, to: int, block: int) -> Span:
    """The blocks from `at` (a multiple of `block`) to `to`, or to what a span may hold or the file has. OSError."""
    first = at
    digests: list[bytes] = []
    holes = RangeSet()
    budget = SPAN
    while at < to and budget > 0:
        data = _next_data(fd, at, to)
        data = data - data % block if data < to else to
        if data > at:
            holes.add(at, data)
            at = data
            continue
        chunk = _read(fd, min(block, to - at), at)
        if chunk:
            digests.append(digest(chunk))
            at += len(chunk)
            budget -= len(chunk)
        if len(chunk) < block:
            break  # the end, or it was cut off meanwhile
    return Span(first, at, block, holes.extents(), b"".join(digests))


def judge(fd: int, span: Span, budget: int = 64 << 20) -> Verdict:
    """Compare a span with the file `fd`; stops after reading `budget` bytes where the span has holes. OSError."""
    differ = RangeSet()
    digests = span.digests
    size = os.fstat(fd).st_size
    for number, (start, end) in enumerate(_blocks(span)):
        expected = digests[number * DIGEST : (number + 1) * DIGEST]
        if end > size or digest(_read(fd, end - start, start)) != expected:
            differ.add(start, end)
    for hole in span.holes:
        at = hole.offset
        while (at := _next_data(fd, at, hole.end)) < hole.end:
            if budget <= 0:
                at -= at % span.block
                return Verdict(at, differ.within(at).extents())
            end = min(at - at % span.block + span.block, hole.end)
            chunk = _read(fd, end - at, at)
            if chunk != _ZEROS[: len(chunk)]:
                differ.add(at - at % span.block, end)
            at = end
            budget -= len(chunk)
    return Verdict(span.to, differ.extents())


def _blocks(span: Span) -> list[tuple[int, int]]:
    """The blocks that have digests, in order."""
    return [(at, min(at + span.block, end)) for start, end in span.data() for at in range(start, end, span.block)]


def _read(fd: int, length: int, at: int) -> bytes:
    """All of these bytes, or up to the end of the file."""
    chunk = os.pread(fd, length, at)
    while 0 < len(chunk) < length:
        more = os.pread(fd, length - len(chunk), at + len(chunk))
        if not more:
            break
        chunk += more
    return chunk


def _next_data(fd: int, at: int, end: int) -> int:
    """Where data begins, from `at` on; `end` if it does not before that."""
    if at >= END_OF_FILE:
        return end
    try:
        return min(end, os.lseek(fd, at, os.SEEK_DATA))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end

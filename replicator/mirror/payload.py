"""The bytes that come with an epoch, sorted by the fact that they belong to.

Takes what the link delivers; promises that the bytes of each fact are exactly those it announces.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from replicator.errors import RemoteError
from replicator.mirror.content import Piece
from replicator.model import Facts

Payload = Sequence[tuple[int, int, memoryview]]
"""(index into facts.inodes, file offset, bytes)."""


def sort_payload(facts: Facts, payload: Payload) -> dict[int, list[Piece]]:
    """Bytes by fact. RemoteError unless they are exactly the data that the facts announce, in ascending order."""
    pieces: dict[int, list[Piece]] = {}
    for index, offset, data in payload:
        if not 0 <= index < len(facts.inodes):
            raise RemoteError(f"epoch {facts.epoch}: bytes for a fact that is not there")
        pieces.setdefault(index, []).append((offset, data))
    for index, fact in enumerate(facts.inodes):
        have = pieces.get(index, [])
        if fact.data == tuple([(at, len(data)) for at, data in have]):
            continue
        if _merged((at, len(data)) for at, data in have) != _merged(fact.data):
            raise RemoteError(f"epoch {facts.epoch}: the bytes of {fact.id.text()} are not those announced")
    return pieces


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for offset, length in ranges:
        if length == 0:
            continue
        if merged and merged[-1][1] == offset:
            merged[-1] = (merged[-1][0], offset + length)
        else:
            merged.append((offset, offset + length))
    return merged

"""Hashes of the 4 KiB pages of mapped files, to tell which pages of a dirtied folio really changed.

A store through a mapping shows as a whole folio, up to 2 MiB for one byte. Takes the bytes that are read for a folio,
gives the pages that differ from what was sent before. Bounded: what is forgotten is sent whole again. Hashes of what is
sent are kept from the moment of the read on; whoever loses an epoch calls `clear`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import xxhash

from replicator.model import FileId

PAGE = 4096


class PageHashes:
    """Per inode: page number → hash of the page as the replica was last told it."""

    def __init__(self, limit: int = 1 << 18) -> None:
        """`limit`: how many pages are remembered in all (a gibibyte of mapped data by default)."""
        self._limit = limit
        self._count = 0
        self._files: OrderedDict[FileId, dict[int, int]] = OrderedDict()

    def compare(self, id: FileId, offset: int, data: bytes) -> tuple[list[tuple[int, int]], dict[int, int]]:
        """The parts [start, end) of `data` (which begins at `offset`, a multiple of PAGE) that differ.

        Also the new hashes, for `remember` when the parts are on their way.
        """
        known = self._files.get(id, {})
        changed: list[tuple[int, int]] = []
        hashes: dict[int, int] = {}
        view = memoryview(data)
        for start in range(0, len(data), PAGE):
            page = (offset + start) // PAGE
            digest = xxhash.xxh3_64_intdigest(view[start : start + PAGE])
            if known.get(page) == digest:
                continue
            hashes[page] = digest
            end = min(start + PAGE, len(data))
            if changed and changed[-1][1] == start:
                changed[-1] = (changed[-1][0], end)
            else:
                changed.append((start, end))
        return changed, hashes

    def remember(self, id: FileId, hashes: dict[int, int]) -> None:
        """These pages are on their way to the replica."""
        if not hashes:
            return
        known = self._files.setdefault(id, {})
        before = len(known)
        known.update(hashes)
        self._count += len(known) - before
        self._files.move_to_end(id)
        while self._count > self._limit and self._files:
            self._count -= len(self._files.popitem(last=False)[1])

    def forget(self, id: FileId, ranges: Iterable[tuple[int, int]]) -> None:
        """These byte ranges [start, end) were sent, or cut off, by another way: what is known of them is old."""
        known = self._files.get(id)
        if known is None:
            return
        before = len(known)
        for start, end in ranges:
            first, last = start // PAGE, -(-end // PAGE)
            if last - first > len(known):
                for page in [page for page in known if first <= page < last]:
                    del known[page]
            else:
                for page in range(first, last):
                    known.pop(page, None)
        self._count -= before - len(known)

    def clear(self) -> None:
        """Forget everything."""
        self._files.clear()
        self._count = 0

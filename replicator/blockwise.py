"""Has the content of files in doubt compared with the replica's, block by block, so that only what differs travels.

Takes files from the outbox's doubts; gives it back, for each, the ranges that the replica has not. The source is read
and hashed in a worker thread while the receiver does the same with what it was asked before: some spans are on their
way at once. A coarse block that differs is looked at again by fine ones. First the lock, then the look, as in
source/read.py: what a hook told before its effect is complete before the first span is read, and what a mapping holds
is written out, so that later stores are seen.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from replicator import blocks, syscalls
from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import Owed
from replicator.link import inquiry
from replicator.model import FileId, Slot
from replicator.source.outbox import Outbox
from replicator.source.read import wait_for_lock, write_out
from replicator.tree.handles import SourceRoot, Stale
from replicator.verify.item import of_content
from replicator.work import Worker

log = logging.getLogger(__name__)

FILES = 4
"""That are compared at once."""
SPANS = 3
"""Of one file that are read, or asked about, at once."""

Ask = Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], None]


class _Part(NamedTuple):
    """What is to be read next."""

    at: int
    to: int
    block: int


@dataclass(slots=True)
class _File:
    """One comparison."""

    owed: Owed
    size: int = 0
    """At the first look."""
    parts: deque[_Part] = field(default_factory=deque)
    differ: RangeSet = field(default_factory=RangeSet)
    out: int = 0
    """Spans that are read or asked about."""


class Blockwise:
    """One sender's. `describe` names an inode for people. Driven by the sender's loop; never blocks."""

    def __init__(self, source: SourceRoot, outbox: Outbox, ask: Ask, describe: Callable[[Slot | FileId], str]) -> None:
        self._source = source
        self._outbox = outbox
        self._ask = ask
        self._describe = describe
        self._worker = Worker()
        self._files: list[_File] = []

    def fileno(self) -> int:
        """Readable when `turn` has something to do."""
        return self._worker.fileno()

    def turn(self) -> None:
        """Go on with what was read, and begin what waits. To be called while there is a session."""
        self._worker.collect()
        self._files = [file for file in self._files if self._outbox.doubts.is_compared(file.owed)]
        for owed in self._outbox.doubts.begin(FILES - len(self._files)):
            file = _File(owed)
            self._files.append(file)
            self._look(file)

    def close(self) -> None:
        """Let the thread end."""
        self._worker.close()

    def _look(self, file: _File) -> None:
        file.out = 1
        self._worker.submit(partial(self._size, file.owed.id), partial(self._looked, file))

    def _looked(self, file: _File, size: int | Exception) -> None:
        if self._failed(file, size):
            return
        assert isinstance(size, int)
        file.size = size
        file.out = 0
        file.parts.append(_Part(0, size, blocks.COARSE))
        self._go_on(file)

    def _go_on(self, file: _File) -> None:
        while file.parts and file.out < SPANS:
            part = file.parts.popleft()
            if part.at >= part.to:
                continue
            file.out += 1
            # What is left of a part is known once its span is read.
            self._worker.submit(partial(self._read, file.owed.id, part), partial(self._span, file, part))
        if not file.parts and not file.out:
            self._outbox.verdicts.compared(file.owed, file.differ, file.size)

    def _span(self, file: _File, part: _Part, span: blocks.Span | Exception) -> None:
        if self._failed(file, span):
            return
        assert isinstance(span, blocks.Span)
        if span.to == span.at:  # it was cut off meanwhile, which will be told
            file.out -= 1
            self._go_on(file)
            return
        file.parts.appendleft(_Part(span.to, part.to, part.block))
        question = {"op": "compare", "items": [of_content(file.owed.id, span)]}
        self._ask(question, lambda body: self._answered(file, span, body))
        self._go_on(file)

    def _answered(self, file: _File, span: blocks.Span, body: dict[str, Any]) -> None:
        if not self._outbox.doubts.is_compared(file.owed):
            return
        if inquiry.refusal(body) is not None:
            self._outbox.verdicts.failed(file.owed, time.monotonic_ns())
            return
        (finding,) = inquiry.findings(body, [span])
        if finding.verdict is None:
            log.warning(
                "cannot compare %s: %s; sending it whole", self._describe(file.owed.id), finding.error or "gone"
            )
            self._outbox.verdicts.failed(file.owed, time.monotonic_ns(), whole=True)
            return
        file.out -= 1
        if finding.verdict.to < span.to:
            file.parts.appendleft(_Part(finding.verdict.to, span.to, span.block))
        for extent in finding.verdict.differ:
            if span.block > blocks.FINE:
                file.parts.appendleft(_Part(extent.offset, extent.end, blocks.FINE))
            else:
                file.differ.add(extent.offset, extent.end)
        self._go_on(file)

    def _failed(self, file: _File, result: object) -> bool:
        """Whether there is nothing to go on with: it is compared no more, or could not be read."""
        if not self._outbox.doubts.is_compared(file.owed):
            return True
        if isinstance(result, Stale):
            self._outbox.verdicts.gone(file.owed)
        elif isinstance(result, Exception):
            if not isinstance(result, OSError):
                raise result
            log.error("cannot read %s: %s; trying again", self._describe(file.owed.id), result.strerror)
            self._outbox.verdicts.failed(file.owed, time.monotonic_ns())
        else:
            return False
        return True

    # ------------------------------------------------------------------ in the thread

    def _size(self, id: FileId) -> int:
        fd = self._source.open_to_read(id)
        try:
            wait_for_lock(fd, os.fstat(fd).st_size, self._source.fstype)
            syscalls.membarrier()
            write_out(fd, 0, 0, self._source.fstype)
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def _read(self, id: FileId, part: _Part) -> blocks.Span:
        fd = self._source.open_to_read(id)
        try:
            if os.fstat(fd).st_nlink == 0:
                raise Stale(id)
            return blocks.describe(fd, part.at, part.to, part.block)
        finally:
            os.close(fd)

"""Calls that nobody told of, because the kernel skipped every program that would have.

Takes the programs of a sensor, what the kernel counts of each, and what their spares count (ebpf/notes.h); gives a
total. Where a function has lost calls, it gets probes as well, so that it does not happen again.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Final

from replicator.capture.layout import FunctionHook
from replicator.capture.load import TRACEPOINT, TRAMPOLINES, Loaded, Program
from replicator.capture.source import AnyHook, target

_log = logging.getLogger(__name__)

# Of this one only what comes in interrupts is skipped, and that matters to nobody (ebpf/freed.c).
_SKIPPABLE: Final = "kfree"
# The first of several programs leaves notes, and spares count where there was none (ebpf/notes.h).
_NOTED: Final = (TRACEPOINT, TRAMPOLINES[False])
_ATTEMPTS: Final = 8


class Skips:
    """The skipped programs of one sensor."""

    def __init__(self, program: Program, times: Callable[[int], int], spared: Callable[[AnyHook], int]) -> None:
        """`times`: how often the kernel skipped a program, by descriptor; `spared`: how often a hook's spares told."""
        self._program, self._times, self._spared = program, times, spared
        self._groups = _grouped(program.loaded)
        self._known: set[AnyHook] = set()

    def total(self) -> int:
        """Calls so far that may have been told by nobody: never less than were, and more only in a storm of skips."""
        total = 0
        for items in list(self._groups):
            missed = self._by_all(items)
            if missed and items[0].hook not in self._known:
                self._known.add(items[0].hook)
                self._answer(items[0])
            total += missed
        return total

    def _by_all(self, items: Sequence[Loaded]) -> int:
        """Of programs that see the same, no more can have been skipped for one call than any of them was skipped.

        Asks no further than to the first that never was.
        """
        fewest = sys.maxsize
        for item in items:
            fewest = min(fewest, self._missed(item))
            if not fewest:
                break
        return fewest

    def _missed(self, item: Loaded) -> int:
        """What one program was skipped for, less what a spare told instead."""
        skipped = self._times(item.descriptor)
        if not skipped or item.spare or item.mechanism not in _NOTED:
            return skipped
        # Calls go on between two looks, and who was skipped in one would seem lost until its spare is asked. The kernel
        # counts first, so that this order can at worst find too many.
        spared = self._spared(item.hook)
        for _ in range(_ATTEMPTS):
            skipped = self._times(item.descriptor)
            before, spared = spared, self._spared(item.hook)
            if before == spared:
                break
        return skipped - before

    def _answer(self, skipped: Loaded) -> None:
        """What can be done about programs that are skipped, and is worth a line in the log."""
        hook, then = skipped.hook, ""
        if isinstance(hook, FunctionHook) and skipped.mechanism == TRAMPOLINES[False] and self._program.back(hook):
            self._groups = _grouped(self._program.loaded)
            then = ": from now on probes see it as well"
        _log.warning("the kernel skips programs at %s%s", target(hook), then)


def _grouped(loaded: Sequence[Loaded]) -> list[list[Loaded]]:
    """Programs that see the same calls in the same way, the spares last."""
    groups: dict[tuple[str, AnyHook], list[Loaded]] = {}
    for item in loaded:
        if target(item.hook) != _SKIPPABLE:
            groups.setdefault((item.mechanism, item.hook), []).append(item)
    return [sorted(items, key=lambda at: at.spare) for items in groups.values()]

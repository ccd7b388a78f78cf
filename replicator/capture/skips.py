"""Calls that nobody told of, because the kernel skipped every program that would have.

Takes the programs of a sensor, what the kernel counts of each, and what their spares count (ebpf/notes.h); gives a
total. Where a function has lost calls, it gets probes as well, so that it does not happen again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from replicator.capture.layout import FunctionHook
from replicator.capture.load import PROBES, TRACEPOINT, TRAMPOLINES, Loaded, Program
from replicator.capture.notebook import SKIPS, SKIPS_NOTES, SkipsNote, SkipsNotes
from replicator.capture.source import MOST_HOOKS, AnyHook, target

_log = logging.getLogger(__name__)

# Of this one only what comes in interrupts is skipped, and that matters to nobody (ebpf/freed.c).
_SKIPPABLE: Final = "kfree"
# The first of several programs leaves notes, and spares count where there was none (ebpf/notes.h).
_NOTED: Final = (TRACEPOINT, TRAMPOLINES[False])
MECHANISMS: Final = (TRACEPOINT, *TRAMPOLINES.values(), *PROBES.values())
"""In the order of their notes, which outlive this process."""
_ATTEMPTS: Final = 8
UNDER_WAY: Final = 10.0
"""Seconds after which a call that the kernel had begun to skip programs for is over."""


@dataclass(slots=True)
class _Group:
    """Programs that see the same calls in the same way, the spares last; and what was found at the last look."""

    items: list[Loaded]
    note: SkipsNote
    """by_spares: calls that each of the spares was skipped for, at most; missed: calls that the first was skipped for
    and no spare told, at most; doubtful: until when `missed` may count calls that a spare was still to tell."""
    backed: bool
    """Probes see them too, whose own misses are counted elsewhere."""
    answered: bool = False


class Skips:
    """The skipped programs of one sensor."""

    def __init__(
        self,
        program: Program,
        times: Callable[[int], int],
        spared: Callable[[AnyHook], int],
        clock: Callable[[], float] = time.monotonic,
        notes: SkipsNotes | None = None,
    ) -> None:
        """`times`: how often the kernel skipped a program, by descriptor; `spared`: how often a hook's spares told.

        `notes`: what an earlier process found of the same programs, and where this one leaves it. The kernel's counts
        and the clock go on, so nothing is in doubt but a look that was cut short: what it found is found again.
        """
        self._program, self._times, self._spared, self._clock = program, times, spared, clock
        self._notes = np.zeros(SKIPS_NOTES, SKIPS) if notes is None else notes
        self._groups: dict[tuple[str, AnyHook], _Group] = {}
        self._regroup()

    def total(self) -> int:
        """Calls so far that may have been told by nobody. It never falls, and grows whenever one was since the last."""
        for group in list(self._groups.values()):
            self._look(group)
            if group.note["lost"] and not group.answered:
                group.answered = True
                self._answer(group)
        return int(self._notes["lost"].sum())

    def _look(self, group: _Group) -> None:
        """A lost call is one that all were skipped for: both of the counts have grown by it.

        `missed` alone would not do: it falls when a spare tells what it counted before, and a loss meanwhile would not
        show. The spares are asked first, so that what they count is in `missed`. A loss is noted before what it was
        found by: if the process dies in between, it is counted again.
        """
        first, *spares = group.items
        if not self._times(first.descriptor):
            return
        note = group.note
        by_spares = [self._times(spare.descriptor) for spare in spares]
        missed = self._missed(first)
        fewest = min(by_spares, default=missed)
        before = int(note["missed"])
        more = fewest - int(note["by_spares"])
        doubtful = bool(note["looked"] < note["doubtful"]) and not group.backed
        now = self._clock()
        if more and missed and (doubtful or missed > before):
            note["lost"] += more if doubtful else min(more, missed - before)
            if missed > before:
                note["doubtful"] = now + UNDER_WAY
                before = missed
        note["missed"] = min(missed, before)
        note["by_spares"] = fewest
        note["looked"] = now

    def _missed(self, item: Loaded) -> int:
        """What one program was skipped for, less what a spare told instead."""
        if item.spare or item.mechanism not in _NOTED:
            return self._times(item.descriptor)
        # Calls go on between two looks, and who was skipped in one would seem lost until its spare is asked. The kernel
        # counts first, so that this order can at worst find too many.
        skipped, before, spared = 0, 0, self._spared(item.hook)
        for _ in range(_ATTEMPTS):
            skipped = self._times(item.descriptor)
            before, spared = spared, self._spared(item.hook)
            if before == spared:
                break
        return skipped - before

    def _answer(self, group: _Group) -> None:
        """What can be done about programs that are skipped, and is worth a line in the log."""
        hook, mechanism, then = group.items[0].hook, group.items[0].mechanism, ""
        if group.backed:
            return
        if isinstance(hook, FunctionHook) and mechanism == TRAMPOLINES[False] and self._program.back(hook):
            group.backed = True
            self._regroup()
            then = ": from now on probes see it as well"
        _log.warning("the kernel skips programs at %s%s", target(hook), then)

    def _regroup(self) -> None:
        """Take in programs that were loaded since."""
        groups = _grouped(self._program.loaded)
        for (mechanism, hook), items in groups.items():
            note = self._notes[MECHANISMS.index(mechanism) * MOST_HOOKS + self._program.place(hook)]
            backed = mechanism == TRAMPOLINES[False] and (PROBES[False], hook) in groups
            self._groups.setdefault((mechanism, hook), _Group(items, note, backed))


def _grouped(loaded: Sequence[Loaded]) -> dict[tuple[str, AnyHook], list[Loaded]]:
    """By how they see which calls, the spares last."""
    groups: dict[tuple[str, AnyHook], list[Loaded]] = {}
    for item in sorted(loaded, key=lambda at: at.spare):
        if target(item.hook) != _SKIPPABLE:
            groups.setdefault((item.mechanism, item.hook), []).append(item)
    return groups

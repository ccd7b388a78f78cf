"""No interleaving of writers and reader loses a write that is left out; without any one of the rules, one does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.memory import BOTH, FIRST, SECOND
from tests.model.repeats import Rules, Scope, explore

ALONE = Scope(((0, (BOTH, FIRST, SECOND)),))
AGAIN = Scope(((0, (FIRST, FIRST, FIRST)),))
APART = Scope(((0, (FIRST, FIRST)), (1, (FIRST,))))
TOGETHER = Scope(((0, (FIRST, FIRST)), (0, (SECOND,))))
STRANGER = Scope(((0, (FIRST, FIRST)),), stranger=True)
FULL = Scope(((0, (FIRST, FIRST)),), full=True)
CUT = Scope(((0, (FIRST, FIRST, FIRST)),), cut=True)

SCOPES = {
    "one writer, different pages": ALONE,
    "one writer, the same page": AGAIN,
    "two processors": APART,
    "two writers on one processor": TOGETHER,
    "a file that becomes a member": STRANGER,
    "a full ring": FULL,
    "a lost connection": CUT,
}

BROKEN = [
    (Rules(hook_after_data=False), ALONE),
    (Rules(writer_barrier=False, processors_barrier=False), ALONE),
    (Rules(guarded=False), TOGETHER),
    (Rules(note_after_submit=False), FULL),
    (Rules(note_is_its_own_range=False), ALONE),
    (Rules(basis_carries_epoch=False), AGAIN),
    (Rules(same_epoch=False), AGAIN),
    (Rules(fences=False), AGAIN),
    (Rules(fence_after_drain=False), AGAIN),
    (Rules(fence_for_strangers=False), STRANGER),
    (Rules(seen_by_epoch=False), AGAIN),
]


def broken(value: object) -> str:
    if not isinstance(value, Rules):
        return ""
    return " and ".join(name for name in Rules.__slots__ if not getattr(value, name))


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES.keys())
def test_what_was_read_last_is_the_file(scope: Scope) -> None:
    states, history = explore(Rules(), scope)
    assert not history, "\n".join(history)
    assert states > 1000, "the interleavings were tried"


@pytest.mark.parametrize("barrier", ["writer_barrier", "processors_barrier"])
def test_either_barrier_is_enough(barrier: str) -> None:
    """On x86 the writer has one anyway; elsewhere the reader sees to it."""
    _, history = explore(replace(Rules(), **{barrier: False}), APART)
    assert not history, "\n".join(history)


@pytest.mark.parametrize(("rules", "scope"), BROKEN, ids=broken)
def test_a_broken_rule_is_noticed(rules: Rules, scope: Scope) -> None:
    _, history = explore(rules, scope)
    assert history, "the replica differs in some interleaving"


def test_every_rule_is_broken_by_some_test() -> None:
    assert {name for rules, _ in BROKEN for name in broken(rules).split(" and ")} == set(Rules.__slots__)

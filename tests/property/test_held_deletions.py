"""A directory stays while anything stays that was in it, in whatever order the deaths are found."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicator.dirty.generations import Generations
from replicator.model import FileId, Kind, Slot
from replicator.source.held import HeldDeletions
from replicator.source.naming import Naming
from replicator.tree.index import TreeIndex
from replicator.tree.resolver import Changes, Due

ROOT = FileId(0, 0, 2, 0)


@given(
    parents=st.lists(st.integers(0, 30), min_size=1, max_size=30),
    limit=st.integers(0, 30),
    rounds=st.integers(1, 3),
    data=st.data(),
)
def test_a_directory_outlives_what_was_in_it(parents: list[int], limit: int, rounds: int, data: st.DataObject) -> None:
    ids = [ROOT, *(FileId(0, 0, 10 + number, 0) for number in range(len(parents)))]
    above = {ids[number + 1]: ids[parent % (number + 1)] for number, parent in enumerate(parents)}
    index, generations = TreeIndex(ROOT), Generations()
    naming = Naming(generations)
    held = HeldDeletions(limit, index, naming, generations)
    slots = {id: Slot(parent, b"%d" % id.ino) for id, parent in above.items()}
    for id, slot in slots.items():
        index.bind(slot, id, Kind.DIRECTORY)
    found = data.draw(st.permutations(ids[1:]))
    for id in reversed(slots):
        index.unbind(slots[id])
        naming.queue(slots[id], Due(0, 0, before=id))
    for first in range(rounds):
        batch = found[first::rounds]
        for id in batch:
            index.forget(id)
        held.dead(Changes(dead=[(id, Due(0, 0)) for id in batch], tops=set(batch)), now=1)
    gone = [id for id in found if id not in held]
    assert len(gone) <= limit
    assert held.holding == len(found) - len(gone)
    assert not [id for id in found if id in held and above[id] in gone]

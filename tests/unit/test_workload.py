"""What the workload's seed decides, and that nothing is missing in its tables."""

from __future__ import annotations

from itertools import islice

from tests.support.operations import operations
from tests.workload.action import actions
from tests.workload.contents import LEFT_OUT
from tests.workload.stream import STORMS, stream, weights


def test_the_same_seed_gives_the_same_stream() -> None:
    assert list(islice(stream(7, 2), 3000)) == list(islice(stream(7, 2), 3000))


def test_seeds_workers_and_storms_differ() -> None:
    streams = [stream(7, 2), stream(8, 2), stream(7, 3), stream(7, 2, "renames")]
    seen = [tuple((step.action, step.seed) for step in islice(one, 50)) for one in streams]
    assert len(set(seen)) == len(seen)


def test_every_action_comes_once_among_the_first_of_the_first_worker() -> None:
    first = [step.action for step in islice(stream(3, 0), len(actions))]
    assert sorted(first) == sorted(actions)


def test_every_action_comes_to_every_worker_in_the_long_run() -> None:
    assert {step.action for step in islice(stream(3, 1), 40_000)} == set(actions)


def test_every_row_of_the_table_of_write_paths_is_an_action() -> None:
    assert {row.name for row in operations} - set(actions) == LEFT_OUT


def test_there_are_names_and_attributes_beside_bytes() -> None:
    families = {row.family for row in actions.values()}
    assert families == {"bytes", "names", "attributes"}


def test_a_storm_is_mostly_what_it_is_called() -> None:
    for storm, begins in STORMS.items():
        odds = weights(storm)
        named = sum(weight for name, weight in odds.items() if name.startswith(begins))
        assert named > 0.75 * sum(odds.values()), storm

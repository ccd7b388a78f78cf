"""Batches of records, merged by numpy, against one record at a time."""

from __future__ import annotations

from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from replicator.capture.epochs import LOW
from replicator.capture.event import EVENT, TO_THE_END, EventFlag, EventKind
from replicator.dirty.generations import Generations
from replicator.dirty.merge import merge
from replicator.dirty.outsiders import MappedOutsiders
from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import DirtyTable
from replicator.dirty.writers import Share, Writers
from replicator.model import END_OF_FILE, FileId

RECORD = st.fixed_dictionaries(
    {
        "ts": st.integers(1, 100),
        "ino": st.integers(1, 3),
        "gen": st.integers(1, 2),
        "root": st.integers(0, 1),
        "kind": st.sampled_from(list(EventKind)),
        "off": st.integers(0, 50),
        "len": st.one_of(st.integers(0, 20), st.just(TO_THE_END)),
        "flags": st.sampled_from([0, EventFlag.MAPPED, EventFlag.HOLES, EventFlag.BEFORE]),
        "pid": st.integers(1, 3),
        "cgroup": st.integers(1, 2),
        "epoch": st.sampled_from([0, 0, 1, 3, LOW - 1, LOW]),
    }
)
FENCE = 2 * (LOW + 1) + 4
"""The present epoch: some records' were before the low half wrapped."""


def one_by_one(record: dict[str, int], table: DirtyTable) -> None:
    owed = table.mark(FileId(0, record["root"], record["ino"], record["gen"]), record["ts"], complete=True)
    if record["kind"] == EventKind.SIZE:
        owed.sized = max(owed.sized, record["ts"])
    elif record["kind"] == EventKind.ATTR:
        owed.changed = max(owed.changed, record["ts"])
    elif record["kind"] != EventKind.WRITE or record["flags"] & EventFlag.BEFORE:
        owed.begun = max(owed.begun, record["ts"])
    if record["epoch"]:
        wrapped = record["epoch"] > FENCE & LOW
        owed.epoch = max(owed.epoch, FENCE - (FENCE & LOW) - (LOW + 1) * wrapped + record["epoch"])
    end = END_OF_FILE if record["len"] == TO_THE_END else record["off"] + record["len"]
    match record["kind"]:
        case EventKind.WRITE:
            owed.ranges.add(record["off"], end)
        case EventKind.FOLIO:
            owed.folios.add(record["off"], end)
            owed.mapped = True
        case EventKind.SIZE:
            owed.lower(record["off"])
        case EventKind.TAIL:
            owed.ranges.add(record["off"], END_OF_FILE)
            owed.holes = True
        case EventKind.WHOLE:
            owed.ranges.add(0, END_OF_FILE)
            owed.whole = True
            owed.holes = True
            owed.lower(0)
    owed.mapped |= bool(record["flags"] & EventFlag.MAPPED)
    owed.holes |= bool(record["flags"] & EventFlag.HOLES)


@given(st.lists(RECORD, min_size=1, max_size=60), st.integers(0, 60))
def test_merging_a_batch_is_merging_its_records(records: list[dict[str, int]], few: int) -> None:
    batch = np.zeros(len(records), EVENT)
    for at, record in enumerate(records):
        for key, value in record.items():
            batch[at][key] = value
    together, single = DirtyTable(Generations()), DirtyTable(Generations())
    together.fence = FENCE
    outsider = FileId(0, 1, 3, 2)
    outsiders, writers = MappedOutsiders(), Writers(lambda pid: f"process{pid}")
    with mock.patch("replicator.dirty.merge.FEW", few):
        taken = merge(batch, together, lambda id: id != outsider, outsiders, writers)
    for record in records:
        one_by_one(record, single)
    single.drop(outsider)
    assert together.repeats == any(record["epoch"] for record in records), "also those of inodes outside the tree"
    assert {owed.id for owed in together.values()} == {owed.id for owed in single.values()}
    mapped = any(
        (r["root"], r["ino"], r["gen"]) == outsider[1:]
        and (r["kind"] == EventKind.FOLIO or r["flags"] & EventFlag.MAPPED)
        for r in records
    )
    assert outsiders.take(outsider) == mapped
    assert taken == sum((r["root"], r["ino"], r["gen"]) != outsider[1:] for r in records)
    for owed in together.values():
        expected = single.get(owed.id)
        assert expected is not None
        assert owed.ranges == expected.ranges
        if not owed.whole:
            assert owed.folios == expected.folios
        assert owed.lowest == expected.lowest
        complete = [
            record["ts"]
            for record in records
            if (record["root"], record["ino"], record["gen"]) == owed.id[1:]
            and record["kind"] == EventKind.WRITE
            and not record["flags"] & EventFlag.BEFORE
        ]
        assert owed.written == max(complete, default=0)
        assert (owed.begun, owed.sized, owed.changed) == (expected.begun, expected.sized, expected.changed)
        assert owed.epoch == expected.epoch
        assert (owed.since, owed.whole, owed.mapped, owed.holes) == (
            expected.since,
            expected.whole,
            expected.mapped,
            expected.holes,
        )
        assert shares(owed.share) == written(records, owed.id)
    assert shares(writers.welcome(outsider)) == written(records, outsider)


def shares(share: Share) -> dict[tuple[int, int], int]:
    assert all(writer.process == f"process{writer.pid}" for writer, _ in share)
    return {(writer.pid, writer.cgroup): written for writer, written in share}


def written(records: list[dict[str, int]], id: FileId) -> dict[tuple[int, int], int]:
    """Bytes by process and control group, of one inode."""
    found: dict[tuple[int, int], int] = {}
    for record in records:
        if (record["root"], record["ino"], record["gen"]) != id[1:]:
            continue
        known = record["kind"] in (EventKind.WRITE, EventKind.FOLIO) and record["len"] != TO_THE_END
        key = record["pid"], record["cgroup"]
        found[key] = found.get(key, 0) + (record["len"] if known else 0)
    return found


def test_offsets_beyond_four_gibibytes_and_to_the_end() -> None:
    batch = np.zeros(2, EVENT)
    batch["ino"], batch["kind"] = 7, EventKind.WRITE
    batch["off"], batch["len"] = [5 << 32, 9 << 40], [4096, TO_THE_END]
    table = DirtyTable(Generations())
    merge(batch, table, lambda id: True, MappedOutsiders(), Writers())
    owed = table.get(FileId(0, 0, 7, 0))
    assert owed is not None
    assert owed.ranges == RangeSet([(5 << 32, (5 << 32) + 4096), (9 << 40, END_OF_FILE)])

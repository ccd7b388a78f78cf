"""Records grouped by numpy, against a dictionary; batches of lines, against one line at a time."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import orjson
from hypothesis import given
from hypothesis import strategies as st

from replicator.capture.event import EVENT, TO_THE_END, EventKind, Events
from replicator.capture.groups import INODE, WRITER, group
from replicator.trace.lines import Author, Format, JsonLines, TextLines, shown

RECORD = st.fixed_dictionaries(
    {
        "ts": st.integers(0, 1 << 50),
        "ino": st.integers(1, 3),
        "gen": st.integers(1, 2),
        "root": st.integers(0, 1),
        "kind": st.sampled_from([*map(int, EventKind), 200]),
        "off": st.integers(0, 1 << 62),
        "len": st.one_of(st.integers(0, 1 << 20), st.just(TO_THE_END)),
        "pid": st.integers(1, 2),
        "cgroup": st.integers(1, 2),
    }
)
RECORDS = st.lists(RECORD, min_size=1, max_size=40)


def batch_of(records: list[dict[str, int]]) -> Events:
    batch = np.zeros(len(records), EVENT)
    for at, record in enumerate(records):
        for key, value in record.items():
            batch[at][key] = value
    return batch


@given(RECORDS, st.sampled_from([INODE, WRITER, ("pid",)]), st.booleans())
def test_a_group_is_all_that_is_equal_in_the_fields(
    records: list[dict[str, int]], fields: tuple[str, ...], alike: bool
) -> None:
    batch = batch_of(records)
    naive: dict[Any, list[int]] = {}
    for at, record in enumerate(records):
        naive.setdefault(tuple(record.get(field, 0) for field in fields), []).append(at)
    with mock.patch("replicator.capture.groups._ODD", np.uint64(0 if alike else 0x9E3779B97F4A7C15)):
        groups = group(batch, fields)
    pieces = [
        groups.order[first:last].tolist()
        for first, last in zip(groups.bounds[:-1].tolist(), groups.bounds[1:].tolist(), strict=True)
    ]
    assert sorted(pieces) == sorted(naive.values())
    assert groups.heads.tolist() == [piece[0] for piece in pieces]
    numbers = groups.numbers().tolist()
    assert all(numbers[at] == number for number, piece in enumerate(pieces) for at in piece)


def lines_of(form: Format, batch: Events) -> list[str]:
    """As the tracer makes them."""
    inodes, writers = group(batch, INODE), group(batch, WRITER)
    files = [form.file(b"file%d" % batch["ino"][head]) for head in inodes.heads]
    pairs = batch[writers.heads][list(WRITER)].tolist()
    authors = [form.author(Author("dd", pid, cgroup, "/a.slice/b.service")) for pid, cgroup in pairs]
    return form.lines(batch, files, inodes.numbers(), authors, writers.numbers())


@given(RECORDS)
def test_every_record_of_bytes_or_a_size_is_one_line_of_json(records: list[dict[str, int]]) -> None:
    names = {EventKind.WRITE: "write", EventKind.FOLIO: "folio", EventKind.SIZE: "size", EventKind.TAIL: "tail"}
    names[EventKind.WHOLE] = "whole"
    batch = shown(batch_of(records))
    expected = [
        {
            "time": record["ts"] / 1e9,
            "kind": names[EventKind(record["kind"])],
            "file": f"file{record['ino']}",
            "offset": record["off"],
            "length": None if record["len"] == TO_THE_END else record["len"],
            "process": "dd",
            "pid": record["pid"],
            "cgroup": record["cgroup"],
            "container": "/a.slice/b.service",
        }
        for record in records
        if record["kind"] in names
    ]
    lines = lines_of(JsonLines(), batch) if len(batch) else []
    assert all(line.endswith("\n") for line in lines)
    assert [list(orjson.loads(line).items()) for line in lines] == [list(record.items()) for record in expected]


@given(RECORDS)
def test_a_batch_s_lines_are_those_of_its_records(records: list[dict[str, int]]) -> None:
    batch = shown(batch_of(records))
    for form in (TextLines(), JsonLines()):
        single = [line for at in range(len(batch)) for line in lines_of(form, batch[at : at + 1])]
        assert (lines_of(form, batch) if len(batch) else []) == single

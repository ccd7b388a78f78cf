"""What a line of `trace` looks like."""

from __future__ import annotations

import numpy as np
import orjson

from replicator.capture.event import EVENT, TO_THE_END, EventKind
from replicator.trace.lines import Author, Format, JsonLines, TextLines, shown

NONE = np.zeros(1, np.intp)
DOCKER = "/system.slice/docker-" + "0123456789ab" + "0" * 52 + ".scope"


def line(form: Format, author: Author, path: bytes = b"dir/file", kind: EventKind = EventKind.WRITE) -> str:
    batch = np.zeros(1, EVENT)
    batch["ts"], batch["kind"], batch["off"], batch["len"] = 12_000_345_999, kind, 4096, 512
    if kind is EventKind.TAIL:
        batch["len"] = TO_THE_END
    (made,) = form.lines(batch, [form.file(path)], NONE, [form.author(author)], NONE)
    return made


def test_text_has_its_columns_and_the_file_last() -> None:
    made = line(TextLines(), Author("dd", 4711, 9, DOCKER))
    assert made.split() == ["12.000345", "write", "4096+512", "4711", "dd", "docker-0123456789ab", "dir/file"]
    assert line(TextLines(), Author("dd", 4711, 9, "/")).split()[-2] == "-"
    assert line(TextLines(), Author("dd", 4711, 9, None)).split()[-2] == "?"
    assert line(TextLines(), Author("dd", 1, 9, None), kind=EventKind.TAIL).split()[2] == "4096+end"
    assert len({line(TextLines(), Author("dd", 1, 9, group)).index("dir/file") for group in ("/", None, DOCKER)}) == 1


def test_json_has_the_number_and_the_path_of_the_control_group() -> None:
    told = orjson.loads(line(JsonLines(), Author("dd", 4711, 9, DOCKER)))
    assert (told["cgroup"], told["container"]) == (9, DOCKER)
    assert orjson.loads(line(JsonLines(), Author("dd", 4711, 9, None)))["container"] is None
    assert orjson.loads(line(JsonLines(), Author("dd", 4711, 9, None), kind=EventKind.TAIL))["length"] is None


def test_no_file_name_makes_a_second_line() -> None:
    for form in (TextLines(), JsonLines()):
        made = line(form, Author("dd", 1, 1, "/"), b'a\n"\xff')
        assert made.count("\n") == 1
        made.encode()
    assert orjson.loads(line(JsonLines(), Author("dd", 1, 1, "/"), b'a\n"\xff'))["file"] == 'a\\x0a"\\xff'


def test_attributes_names_and_what_is_not_known_are_no_lines() -> None:
    batch = np.zeros(4, EVENT)
    batch["kind"] = [EventKind.ATTR, EventKind.WRITE, 77, EventKind.SIZE]
    assert shown(batch)["kind"].tolist() == [EventKind.WRITE, EventKind.SIZE]

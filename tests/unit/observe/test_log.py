"""One event, one line, whoever chose the file name in it."""

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from replicator.errors import UsageError
from replicator.observe import log

NASTY = b"a\nWARNING forged\x1b[31m\xff\xe2\x80\xa8"


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("replicator")
    before = (list(root.handlers), root.level, ours.level, logging.raiseExceptions)
    yield
    root.handlers[:], root.level = before[0], before[1]
    ours.setLevel(before[2])
    logging.raiseExceptions = before[3]


def written(environment: dict[str, str], level: int = logging.WARNING, extra: dict[str, object] | None = None) -> str:
    stream = io.StringIO()
    log.configure(environment, stream)
    logging.getLogger("replicator.link.session").log(level, "lost %s", log.printable(NASTY), extra=extra)
    return stream.getvalue()


def test_a_plain_line_has_time_level_and_place() -> None:
    line = written({}, extra={"epoch": 7, "peer": "a host"})
    time, level, place, rest = line.rstrip("\n").split(" ", 3)
    assert time.endswith("Z")
    assert (level, place) == ("WARNING", "link.session:")
    assert rest.endswith(' epoch=7 peer="a host"')


@pytest.mark.parametrize("form", ["plain", "json"])
def test_a_file_name_cannot_forge_a_line_or_colour_the_terminal(form: str) -> None:
    text = written({"RSYNCFS_LOG": form})
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text
    assert "WARNING forged" in text


def test_a_name_keeps_what_can_be_shown() -> None:
    assert log.printable(NASTY) == "a\\x0aWARNING forged\\x1b[31m\\xff\\u2028"
    assert log.printable(Path("/srv/übung")) == "/srv/übung"


def test_json_lines_carry_what_was_passed() -> None:
    told = orjson.loads(written({"RSYNCFS_LOG": "json"}, extra={"name_bytes": NASTY, "epoch": 7, "huge": 2**70}))
    assert told["level"] == "warning"
    assert told["logger"] == "replicator.link.session"
    assert told["epoch"] == 7
    assert told["huge"] == str(2**70)
    assert told["name_bytes"].startswith("a\\x0a")


@pytest.mark.parametrize("form", ["plain", "json"])
def test_a_traceback_is_not_lost(form: str) -> None:
    stream = io.StringIO()
    log.configure({"RSYNCFS_LOG": form}, stream)
    try:
        raise ValueError(os.fsdecode(NASTY))
    except ValueError:
        logging.getLogger("replicator.send").exception("unexpected")
    assert "ValueError" in stream.getvalue()
    assert "test_log.py" in stream.getvalue()


def test_the_level_is_chosen_by_the_environment() -> None:
    assert written({}, logging.DEBUG) == ""
    assert written({"RSYNCFS_LOG_LEVEL": "DEBUG"}, logging.DEBUG) != ""
    assert written({"RSYNCFS_LOG_LEVEL": "error"}, logging.WARNING) == ""


@pytest.mark.parametrize("environment", [{"RSYNCFS_LOG": "xml"}, {"RSYNCFS_LOG_LEVEL": "loud"}])
def test_nonsense_in_the_environment_is_a_usage_error(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"use "):
        log.configure(environment, io.StringIO())


def test_the_journal_gets_priorities_instead_of_times(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        log.configure({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}, stream)
        logging.getLogger("replicator.send").warning("behind")
        stream.seek(0)
        assert stream.read() == "<4>send: behind\n"


def test_a_full_disk_under_stderr_is_survived(capfd: pytest.CaptureFixture[str]) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full, io.TextIOWrapper(full, write_through=True) as stream:
        log.configure({}, stream)
        logging.getLogger("replicator.send").warning("behind")
    assert capfd.readouterr() == ("", "")


def test_configuring_again_does_not_double_the_lines() -> None:
    log.configure({}, io.StringIO())
    assert len(written({}).splitlines()) == 1


def test_what_happens_too_often_is_told_seldom_with_its_count() -> None:
    now = 0.0
    seldom = log.Seldom(1.0, lambda: now)
    assert seldom.count(0) == 0
    assert seldom.count(3) == 3
    assert [seldom.count(2) for _ in range(4)] == [0, 0, 0, 0]
    now = 1.0
    assert seldom.count(0) == 0
    assert seldom.count(1) == 9
    assert seldom.count(1) == 0

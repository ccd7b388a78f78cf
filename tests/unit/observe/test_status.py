"""What `status` says to people of the writers of the backlog."""

from __future__ import annotations

from typing import Any

from replicator.observe.status import render

ANSWER: dict[str, Any] = {
    "role": "sender",
    "source": "/srv/data",
    "filesystem": "ext4",
    "sensor": "tracepoint",
    "receiver": "replica:7410",
    "connected": False,
    "phase": "ready",
    "files": 9,
    "dirty_files": 3,
    "dirty_bytes": 700,
    "oldest_unreplicated_seconds": 1.0,
    "lag_applied_ms": {"p50": 1.0, "p99": 2.0},
    "lag_durable_ms": {"p50": 1.0, "p99": 2.0},
    "wire_bytes": {"sent": 1, "received": 2},
    "waiting_for": "",
    "scrub": None,
    "doubted_files": 0,
    "refused_files": 0,
    "excluded": [],
    "state_trouble": "",
    "held_deletions": 0,
    "max_delete": None,
    "losses": {},
    "writers": [],
    "writers_estimated": False,
}


def row(process: str | None, **other: object) -> dict[str, object]:
    return {
        "process": process,
        "pid": 4711,
        "processes": 1,
        "cgroup": 1,
        "container": "/",
        "files": 2,
        "bytes": 500,
        **other,
    }


def shown(*rows: dict[str, object], estimated: bool = False) -> list[str]:
    lines = render({**ANSWER, "writers": list(rows), "writers_estimated": estimated}).splitlines()
    begin = next((at for at, line in enumerate(lines) if line.startswith("writers:")), len(lines))
    end = next(at for at, line in enumerate(lines) if line.startswith("lag:"))
    return [line.strip() for line in lines[begin:end]]


def test_a_writer_is_a_line() -> None:
    docker = "/system.slice/docker-" + "0123456789ab" + "0" * 52 + ".scope"
    assert shown(
        row("dd"),
        row("cp", pid=None, processes=12, container=docker),
        row(None, pid=None, processes=0, container=None),
    ) == [
        "writers:   dd (4711): 2 files, 500 bytes",
        "cp (12 processes) in docker-0123456789ab: 2 files, 500 bytes",
        "?: 2 files, 500 bytes",
    ]


def test_the_five_largest_are_shown() -> None:
    lines = shown(*(row(f"writer{number}") for number in range(9)))
    assert [f"writer{number} (" in line for number, line in enumerate(lines)] == [True] * 5


def test_an_estimate_says_so() -> None:
    assert shown(row("dd"), estimated=True) == ["writers:   dd (4711): about 2 files, 500 bytes"]


def test_nothing_is_said_when_nothing_is_owed() -> None:
    assert shown() == []


def scrub_line(running: dict[str, int] | None, last: dict[str, object]) -> str:
    scrub = {"period": 86400.0, "next_in": 3600.4, "running": running, "last": {"ended": 1.0, "seconds": 90.0, **last}}
    (line,) = (line for line in render({**ANSWER, "scrub": scrub}).splitlines() if line.startswith("scrub:"))
    return line


def test_the_scrub_is_told() -> None:
    over: dict[str, object] = {"files": 9, "bytes": 10, "found": 0, "left": 0, "unsettled": 0}
    assert scrub_line(None, {}) == "scrub:     the next in 3600 s"
    assert scrub_line(None, over) == "scrub:     the next in 3600 s; the last took 90 s, found 0 differences"
    assert scrub_line({"files": 3, "of": 9, "bytes": 5}, {**over, "found": 2, "left": 1, "unsettled": 4}) == (
        "scrub:     3 of 9 files, 5 bytes compared; the last took 90 s, found 2 differences, 1 of them left,"
        " 4 files could not be judged"
    )

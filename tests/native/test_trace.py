"""`trace` shows who writes what, keeps up, and says what it could not show."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.support.cgroups import cgroup, hierarchy
from tests.support.deadline import eventually
from tests.support.filesystems import filesystem
from tests.support.helpers import call
from tests.support.pair import COMMAND, environment, rsyncfs
from tests.support.tracing import POKE, Trace

pytestmark = pytest.mark.native

WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for number in range(int(sys.argv[2])):
    os.pwrite(fd, b"x" * 64, 64 * (number % 1000))
"""
STORM = 300_000
CONTAINER = "/rsyncfs-test.slice/docker-" + "0123456789ab" + "e" * 52 + ".scope"


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with filesystem("ext4", tmp_path_factory.mktemp("traced")) as point:
        yield point


@pytest.fixture
def tree(volume: Path, request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own, beside others on the same filesystem."""
    directory = volume / re.sub(r"\W+", "-", request.node.name)
    directory.mkdir()
    return directory


def storm(file: Path, number: int = STORM) -> None:
    """So many writes of 64 bytes, by a process that has ended."""
    subprocess.run([sys.executable, "-c", WRITER, file, str(number)], check=True, timeout=120)


@pytest.mark.parametrize("options", [["--json"], []], ids=["json", "text"])
def test_ranges_and_who_writes_them(tree: Path, scratch: Path, options: list[str]) -> None:
    (tree / "sub").mkdir()
    with Trace(tree, scratch, options) as trace:
        (tree.parent / "outside-of-trace").write_bytes(b"not ours")
        with (tree / "sub" / "a\nb").open("wb", buffering=0) as file:
            file.write(b"x" * 5000)
            os.pwrite(file.fileno(), b"y" * 10, 70_000)
            os.ftruncate(file.fileno(), 100)
        eventually(lambda: [1 for line in trace.lines if "size" in line], 10, "the truncation is shown")
    assert not [line for line in trace.lines if "outside" in line]
    name = "sub/a\\x0ab"
    if not options:
        words = [line.split() for line in trace.lines]
        assert [name] * len(words) == [word[-1] for word in words]
        assert [str(os.getpid())] * len(words) == [word[3] for word in words]
        assert {"write", "size"} == {word[1] for word in words}
        return
    records = trace.records()
    assert {record["file"] for record in records} == {name}
    assert {record["pid"] for record in records} == {os.getpid()}
    assert {record["process"] for record in records} == {Path("/proc/self/comm").read_text().strip()}
    writes = [(record["offset"], record["length"]) for record in records if record["kind"] == "write"]
    assert sum(length for _, length in writes) == 5010
    assert (70_000, 10) in writes
    assert [record["offset"] for record in records if record["kind"] == "size"][-1] == 100


def test_a_container_is_shown_with_its_path_and_its_short_name(tree: Path, scratch: Path) -> None:
    with hierarchy(scratch) as mount, cgroup(mount, CONTAINER) as group:
        with Trace(tree, scratch) as trace:
            id = group.id
            pid = group.call("dd", "if=/dev/zero", f"of={tree}/inside", "bs=100", "count=3", "status=none")
            trace.see("inside")
            trace.catch_up()
        written = [record for record in trace.records("inside") if record["kind"] == "write"]
        assert {(record["process"], record["pid"]) for record in written} == {("dd", pid)}
        assert {(record["cgroup"], record["container"]) for record in written} == {(id, CONTAINER)}
        with Trace(tree, scratch, []) as trace:
            group.call("dd", "if=/dev/zero", f"of={tree}/inside", "bs=100", "count=3", "status=none")
            line = eventually(lambda: [line for line in trace.lines if "inside" in line], 30)[-1]
        assert line.split()[4:] == ["dd", "docker-0123456789ab", "inside"]


def test_a_process_that_has_ended_is_called_what_it_was(tree: Path, scratch: Path) -> None:
    """Also when it had another name when it opened its file, and when a worker of the kernel ends its write."""
    with Trace(tree, scratch) as trace:
        os.kill(trace.process.pid, signal.SIGSTOP)
        subprocess.run(["dd", "if=/dev/zero", f"of={tree}/copied", "bs=7", "count=2", "status=none"], check=True)
        script = f"echo before > {tree}/became; exec dd if=/dev/zero of={tree}/became bs=1000 count=1 status=none"
        shell = subprocess.Popen(["sh", "-c", script])
        assert shell.wait(30) == 0
        (tree / "direct").write_bytes(bytes(65_536))
        call("aio_write", tree / "direct", "direct", 32_768, 8192, 1)
        os.kill(trace.process.pid, signal.SIGCONT)
        trace.see("direct")
        trace.catch_up()
    assert {record["process"] for record in trace.records("copied")} == {"dd"}
    assert [record["process"] for record in trace.records("direct") if record["offset"] == 32_768] == ["aio_write"]
    who = {(record["length"], record["process"]) for record in trace.records("became") if record["kind"] == "write"}
    assert who == {(7, "sh"), (1000, "dd")}
    assert {record["pid"] for record in trace.records("became")} == {shell.pid}


def test_names_are_those_of_the_moment(tree: Path, scratch: Path) -> None:
    """Files that are gone when the tracer looks, and files below a directory that was renamed."""
    (tree / "old").mkdir()
    kept = tree / "old" / "kept"
    kept.touch()
    gone = tree / "gone"
    gone.write_bytes(b"1")
    with Trace(tree, scratch) as trace:
        kept.write_bytes(b"22")
        assert trace.see("old/kept")["length"] is not None
        os.kill(trace.process.pid, signal.SIGSTOP)
        gone.write_bytes(b"333")
        gone.unlink()
        (tree / "brief").write_bytes(b"4444")
        (tree / "brief").unlink()
        os.kill(trace.process.pid, signal.SIGCONT)
        trace.see("gone")
        trace.see("brief")
        (tree / "old").rename(tree / "new")
        with (tree / "new" / "kept").open("ab") as file:
            file.write(b"55555")
        trace.see("new/kept")
        outside = tree.with_name("moved-out")
        (tree / "new").rename(outside)

        def unseen() -> bool:
            seen = len(trace.lines)
            with (outside / "kept").open("ab") as file:
                file.write(b"666666")
            trace.catch_up()
            return trace.lines[seen:] == []

        eventually(unseen, 10, "what is written outside is not shown")
    lengths = [(record["file"], record["length"]) for record in trace.records() if record["length"] in range(1, 6)]
    assert lengths == [("old/kept", 2), ("gone", 3), ("brief", 4), ("new/kept", 5)]


@pytest.mark.parametrize("options", [["--json"], []], ids=["json", "text"])
def test_a_storm_is_shown_completely_or_the_rest_is_counted(tree: Path, scratch: Path, options: list[str]) -> None:
    with Trace(tree, scratch, options) as trace:
        storm(tree / "file")
    shown = sum("write" in line for line in trace.lines)
    assert shown + trace.left_out() == STORM
    assert shown > 0


def first_bytes(output: IO[bytes], tree: Path) -> bytes:
    """What is shown first, of a file that is poked until something is."""
    os.set_blocking(output.fileno(), False)

    def read() -> bytes:
        (tree / POKE).write_bytes(b"poke")
        return output.read() or b""

    head = eventually(read, 60, "a write is shown", every=0.1)
    os.set_blocking(output.fileno(), True)
    return head


def test_a_reader_that_stops_reading_costs_lines_and_the_sum_is_told(tree: Path, scratch: Path) -> None:
    """Nobody reads for a whole storm. What is left out then, and at the end, adds up with what was shown."""
    log, shown = scratch / "trace.err", scratch / "shown"
    with log.open("wb") as error, shown.open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, "trace", str(tree), "--json"], stdout=subprocess.PIPE, stderr=error, env=environment()
        )
        assert process.stdout is not None
        with process.stdout as lines:
            head = first_bytes(lines, tree)
            storm(tree / "file")
            eventually(lambda: "lines were left out" in log.read_text(), 30, "it says so while nobody reads")
            process.terminate()
            output.write(head + lines.read())
        assert process.wait(30) == 0
    stormed = [line for line in shown.read_bytes().splitlines(keepends=True) if POKE.encode() not in line]
    whole = sum(b'"write"' in line and line.endswith(b"}\n") for line in stormed)
    told = re.findall(r"(?m)^rsyncfs: (\d+) (?:lines|records) were left out: ", log.read_text())
    assert whole + sum(map(int, told)) == STORM
    assert 0 < whole < STORM


def test_it_ends_when_nobody_reads_any_more(tree: Path, scratch: Path) -> None:
    log = scratch / "trace.err"
    with log.open("wb") as error:
        process = subprocess.Popen(
            [*COMMAND, "trace", str(tree)], stdout=subprocess.PIPE, stderr=error, env=environment()
        )
    assert process.stdout is not None
    with process.stdout as output:
        first_bytes(output, tree)
    eventually(lambda: (tree / POKE).write_bytes(b"poke") and process.poll() is not None, 30, every=0.1)
    assert process.returncode == 0
    assert log.read_text() == ""


def test_it_goes_on_after_its_queue_of_names_overflowed(tree: Path, scratch: Path) -> None:
    deep = tree / "sub" / "deep"
    deep.mkdir(parents=True)
    with Trace(tree, scratch) as trace:
        os.kill(trace.process.pid, signal.SIGSTOP)
        for number in range(int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text()) + 1000):
            (tree / f"flood{number}").touch()
        (deep / "late").touch()
        os.kill(trace.process.pid, signal.SIGCONT)
        eventually(
            lambda: (deep / "late").write_bytes(b"late") and trace.records("sub/deep/late"),
            60,
            "a write to the file that nobody told of is shown",
            every=0.1,
        )


def test_a_directory_that_is_not_there_is_told() -> None:
    done = rsyncfs("trace", "/nonexistent")
    assert (done.returncode, done.stdout) == (3, "")
    assert "/nonexistent" in done.stderr

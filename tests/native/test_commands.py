"""`verify` and `status` beside a running pair."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Case, on
from tests.support.cgroups import cgroup, hierarchy
from tests.support.deadline import eventually
from tests.support.load import Churn
from tests.support.operations import MIB, content
from tests.support.pair import rsyncfs

pytestmark = [pytest.mark.native, on("ext4")]


def verify(case: Case) -> tuple[int, dict[str, Any]]:
    """The exit code and the one object."""
    done = rsyncfs("verify", "--state", case.pair.send_state, "--json", timeout=120)
    assert done.stderr == ""
    answer: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, answer


def populate(case: Case) -> None:
    (case.source / "sub").mkdir()
    for number in range(5):
        (case.source / f"file{number}").write_bytes(content(3 * MIB if number == 0 else 9000, number))
    (case.source / "sub" / "inner").write_bytes(b"inner")
    (case.source / "link").symlink_to("file1")
    case.pair.wait()


def test_verify_says_identical(case: Case) -> None:
    populate(case)
    code, answer = verify(case)
    assert code == 0
    assert answer["identical"] is True
    assert answer["differences"] == []
    assert answer["bytes"] >= 3 * MIB + 4 * 9000
    assert answer["files"] >= 9
    done = rsyncfs("verify", "--state", case.pair.send_state)
    assert done.returncode == 0
    assert done.stdout.startswith("identical")


def flip_a_byte(replica: Path) -> None:
    """As a sick disk does: neither size nor times tell."""
    path = replica / "file0"
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(2 * MIB)
        byte = file.read(1)
        file.seek(2 * MIB)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("harm", "kind", "path"),
    [
        (flip_a_byte, "content", "file0"),
        (lambda replica: (replica / "file1").chmod(0o600), "mode", "file1"),
        (lambda replica: os.chown(replica / "file2", 12, -1), "uid", "file2"),
        (lambda replica: os.utime(replica / "file3", ns=(1, 1)), "mtime", "file3"),
        (lambda replica: os.setxattr(replica / "file4", "user.colour", b"red"), "xattrs", "file4"),
        (lambda replica: os.truncate(replica / "file4", 100), "size", "file4"),
        (lambda replica: (replica / "foreign").touch(), "name only on the replica", "foreign"),
        (lambda replica: os.mkdir(os.fsencode(replica) + b"/odd\xff\n"), "name only on the replica", "odd\\xff\\x0a"),
        (lambda replica: (replica / "sub" / "inner").unlink(), "missing", "sub/inner"),
    ],
    ids=["byte", "mode", "owner", "time", "xattr", "size", "extra", "odd", "missing"],
)
def test_verify_lists_what_differs(case: Case, harm: Callable[[Path], None], kind: str, path: str) -> None:
    populate(case)
    harm(case.replica)
    try:
        code, answer = verify(case)
        assert code == 1
        assert answer["identical"] is False
        assert {"kind": kind, "path": f"{case.name}/{path}"} in answer["differences"]
        done = rsyncfs("verify", "--state", case.pair.send_state)
        assert done.returncode == 1
        assert f"{kind}: {case.name}/{path}" in done.stdout.splitlines()
        assert done.stdout.splitlines()[-1].startswith("different: ")
    finally:
        case.pair.kill()  # the next case gets a pair that nobody has harmed


def test_verify_tells_being_written_from_different(case: Case) -> None:
    """Several of them at once, beside a writer that never pauses."""
    populate(case)
    busy = case.source / "busy"
    busy.mkdir()
    answers: list[tuple[int, dict[str, Any]]] = []
    with Churn(busy, limit=120) as churn:
        threads = [threading.Thread(target=lambda: answers.append(verify(case))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        churn.stop()
    assert [code for code, _ in answers] == [0, 0, 0]
    for _, answer in answers:
        assert (answer["identical"], answer["differences"]) == (True, [])
    case.assert_same()


def test_status_of_both_ends(case: Case) -> None:
    populate(case)
    told = case.pair.status()
    assert (told["connected"], told["phase"], told["dirty_files"], told["refused"]) == (True, "ready", 0, [])
    assert told["files"] >= 9
    assert told["sensor"] == "tracepoint"
    for state, words in (
        (case.pair.send_state, ("source:", "receiver:", "connected", "lag:", "wire:")),
        (case.pair.receive_state, ("replica:", "sender:", "state:    complete", "durable:")),
    ):
        done = rsyncfs("status", "--state", state)
        assert done.returncode == 0
        for word in words:
            assert word in done.stdout


def test_status_tells_who_wrote_what_is_owed(case: Case, scratch: Path) -> None:
    """A process in a container writes to an old file and a new one while the receiver stands still, and ends."""
    container = "/rsyncfs-test.slice/docker-" + "0123456789ab" + "d" * 52 + ".scope"
    (case.source / "old").write_bytes(b"x" * 10_000)
    case.pair.wait()
    assert case.pair.status()["writers"] == []
    assert case.pair.receiver is not None

    def row() -> dict[str, Any] | None:
        return next((row for row in case.pair.status()["writers"] if row["container"] == container), None)

    with hierarchy(scratch) as mount, cgroup(mount, container) as group:
        os.kill(case.pair.receiver.pid, signal.SIGSTOP)
        try:
            script = 'printf 12345 | dd of="$1/old" conv=notrunc status=none; exec tee "$1/new"'
            with group.start(
                ["sh", "-euc", script, "sh", case.source], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
            ) as process:
                assert process.stdin is not None
                process.stdin.write(b"y" * 3000)
                process.stdin.flush()
                eventually(lambda: (told := row()) is not None and told["bytes"] >= 3000, 10, "its writer is known")
            assert process.returncode == 0
            rows = [told for told in case.pair.status()["writers"] if told["container"] == container]
            assert {told["cgroup"] for told in rows} == {group.id}
            tee = next(told for told in rows if told["process"] == "tee")
            # the directory in which it made the file is owed as well
            assert (tee["pid"], tee["files"], tee["bytes"]) == (process.pid, 2, 3000)
            assert sum(told["files"] for told in rows) == 3
            assert sum(told["bytes"] for told in rows) == 3005
            shown = rsyncfs("status", "--state", case.pair.send_state).stdout.splitlines()
            assert f"tee ({process.pid}) in docker-0123456789ab: 2 files, 3000 bytes" in next(
                line for line in shown if "writers:" in line
            )
        finally:
            os.kill(case.pair.receiver.pid, signal.SIGCONT)
    case.pair.wait()
    assert case.pair.status()["writers"] == []

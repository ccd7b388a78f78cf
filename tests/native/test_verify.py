"""`verify` beside a running pair: every way to differ is found, listed and mended, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Case, on
from tests.support.deadline import eventually
from tests.support.load import Churn
from tests.support.operations import MIB, content
from tests.support.oracle import differences
from tests.support.pair import Pair, rsyncfs

pytestmark = [pytest.mark.native, on("ext4")]

EXTRA, OTHER = "name only on the replica", "name of another file"


def verify(pair: Pair, *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the one object."""
    done = rsyncfs("verify", "--state", pair.send_state, "--json", *words, timeout=120)
    assert done.stderr == ""
    answer: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, answer


def populate(case: Case) -> None:
    (case.source / "sub").mkdir()
    for number in range(5):
        (case.source / f"file{number}").write_bytes(content(3 * MIB if number == 0 else 9000, number))
    (case.source / "large").write_bytes(content(20 * MIB, 9))
    (case.source / "sub" / "inner").write_bytes(b"inner")
    (case.source / "sub" / "inner too").write_bytes(b"inner too")
    (case.source / "link").symlink_to("file1")
    os.link(case.source / "file3", case.source / "sub" / "hard")
    os.setxattr(case.source / "file4", "user.shape", b"round")
    case.pair.wait()


def flip_a_byte(path: Path, at: int) -> None:
    """As a sick disk does: neither size nor times tell."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(replica: Path) -> None:
    (replica / "file1").rename(replica / "waits")
    (replica / "file2").rename(replica / "file1")
    (replica / "waits").rename(replica / "file2")


def part(path: Path) -> None:
    """One of two names of an inode becomes a file of its own, with the same content."""
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def plant(replica: Path) -> None:
    (replica / "planted" / "deep").mkdir(parents=True)
    (replica / "planted" / "deep" / "file").write_bytes(b"not from here")


def retype(replica: Path) -> None:
    (replica / "link").unlink()
    (replica / "link").write_bytes(b"a file")


HARM: dict[str, tuple[Callable[[Path], object], list[tuple[str, str]]]] = {
    "byte": (lambda replica: flip_a_byte(replica / "file0", 2 * MIB + 5), [("content", "file0")]),
    "byte-of-small": (lambda replica: flip_a_byte(replica / "file1", 5), [("content", "file1")]),
    "last-byte": (lambda replica: flip_a_byte(replica / "large", 20 * MIB - 1), [("content", "large")]),
    "mode": (lambda replica: (replica / "file1").chmod(0o600), [("mode", "file1")]),
    "mode-of-directory": (lambda replica: (replica / "sub").chmod(0o700), [("mode", "sub")]),
    "owner": (lambda replica: os.chown(replica / "file2", 12, -1), [("uid", "file2")]),
    "group": (lambda replica: os.chown(replica / "link", -1, 12, follow_symlinks=False), [("gid", "link")]),
    "time": (lambda replica: os.utime(replica / "file3", ns=(1, 1)), [("mtime", "file3")]),
    "xattr-more": (lambda replica: os.setxattr(replica / "file4", "user.colour", b"red"), [("xattrs", "file4")]),
    "xattr-less": (lambda replica: os.removexattr(replica / "file4", "user.shape"), [("xattrs", "file4")]),
    "shorter": (lambda replica: os.truncate(replica / "file4", 100), [("size", "file4")]),
    "longer": (lambda replica: os.truncate(replica / "large", 30 * MIB), [("size", "large")]),
    "cut": (lambda replica: os.truncate(replica / "large", 10 * MIB), [("size", "large"), ("content", "large")]),
    "extra": (lambda replica: (replica / "foreign").touch(), [(EXTRA, "foreign")]),
    "odd": (lambda replica: os.mkdir(os.fsencode(replica) + b"/odd\xff\n"), [(EXTRA, "odd\\xff\\x0a")]),
    "tree": (plant, [(EXTRA, "planted"), (EXTRA, "planted/deep"), (EXTRA, "planted/deep/file")]),
    "missing": (lambda replica: (replica / "sub" / "inner").unlink(), [("missing", "sub/inner")]),
    "missing-tree": (
        lambda replica: shutil.rmtree(replica / "sub"),
        [("missing", "sub"), ("missing", "sub/inner"), ("missing", "sub/inner too")],
    ),
    "renamed": (
        lambda replica: (replica / "sub/inner").rename(replica / "away"),
        [("missing", "sub/inner"), (EXTRA, "away")],
    ),
    "renamed-tree": (
        lambda replica: (replica / "sub").rename(replica / "bus"),
        [("missing", "sub"), (EXTRA, "bus")],
    ),
    "swapped": (swap, [(OTHER, "file1"), (OTHER, "file2")]),
    "parted": (lambda replica: part(replica / "sub/hard"), [(OTHER, "sub/hard")]),
    "linked": (lambda replica: os.link(replica / "file1", replica / "more"), [(EXTRA, "more")]),
    "retyped": (retype, [(OTHER, "link")]),
}


def test_verify_says_identical(case: Case) -> None:
    populate(case)
    with (case.source / "sparse").open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)
        os.pwrite(file.fileno(), b"far away", 1 << 39)
    for number in range(3000):
        (case.source / "sub" / f"many{number}").touch()
    case.pair.wait()
    code, answer = verify(case.pair)
    assert code == 0
    assert answer["identical"] is True
    assert answer["differences"] == []
    assert answer["bytes"] >= 23 * MIB + 4 * 9000
    assert answer["files"] >= 3012
    done = rsyncfs("verify", "--state", case.pair.send_state)
    assert done.returncode == 0
    assert done.stdout.startswith("identical")


def test_a_large_directory_is_compared_to_its_last_name(case: Case) -> None:
    for number in range(5000):
        (case.source / f"many{number}").touch()
    case.pair.wait()
    (case.replica / "many4999").rename(case.replica / "zzz")
    (case.replica / "aaa").touch()
    code, answer = verify(case.pair)
    assert code == 1
    told = {(each["kind"], each["path"].removeprefix(f"{case.name}/")) for each in answer["differences"]}
    assert {("missing", "many4999"), (EXTRA, "zzz"), (EXTRA, "aaa")} <= told
    assert len(told) <= 5  # the directory's time, and the file
    assert verify(case.pair, "--repair")[0] == 0
    assert differences(case.source, case.replica) == []


@pytest.mark.parametrize("harm", HARM)
def test_what_differs_is_listed_and_mended(case: Case, harm: str) -> None:
    populate(case)
    do, expected = HARM[harm]
    do(case.replica)
    code, answer = verify(case.pair)
    assert code == 1
    assert answer["identical"] is False
    told = {(each["kind"], each["path"].removeprefix(f"{case.name}/")) for each in answer["differences"]}
    assert set(expected) <= told
    # Of the rest, each is something that the harm did besides: to the times of what it touched, or beneath it.
    touched = {path for _, path in expected} | {case.name, "sub"}
    assert {path for _, path in told} <= touched | {"sub/hard", "file3"}, told
    assert answer["different"] == len(told)
    done = rsyncfs("verify", "--state", case.pair.send_state)
    assert done.returncode == 1
    for kind, path in expected:
        assert any(line.startswith(f"{kind}: {case.name}/{path}") for line in done.stdout.splitlines()), done.stdout
    assert done.stdout.splitlines()[-1].startswith("different: ")
    assert differences(case.source, case.replica), "comparing mends nothing"

    code, answer = verify(case.pair, "--repair")
    assert code == 0, answer
    assert {(each["kind"], each["path"].removeprefix(f"{case.name}/")) for each in answer["repaired"]} >= set(expected)
    assert all(each["mended"] for each in answer["repaired"])
    assert (answer["left"], answer["unsure"]) == (0, 0)
    assert differences(case.source, case.replica) == []
    assert verify(case.pair)[0] == 0


def test_where_the_content_differs_is_told(case: Case) -> None:
    populate(case)
    flip_a_byte(case.replica / "large", 17 * MIB + 12345)
    _, answer = verify(case.pair)
    (found,) = (each for each in answer["differences"] if each["kind"] == "content")
    assert found["offset"] <= 17 * MIB + 12345 < found["offset"] + found["length"]
    assert found["length"] <= 64 * 1024
    assert verify(case.pair, "--repair")[0] == 0


def test_repair_moves_what_differs(case: Case) -> None:
    (case.source / "big").write_bytes(content(64 * MIB))
    case.pair.wait()
    flip_a_byte(case.replica / "big", 33 * MIB)
    before = case.pair.wire_bytes()
    assert verify(case.pair, "--repair")[0] == 0
    assert case.pair.wire_bytes() - before < MIB
    assert differences(case.source, case.replica) == []


def test_repair_tells_each_in_words(case: Case) -> None:
    populate(case)
    (case.replica / "file1").chmod(0o600)
    done = rsyncfs("verify", "--repair", "--state", case.pair.send_state)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == f"mode: {case.name}/file1"
    assert lines[1] == f"mended: mode: {case.name}/file1"
    assert lines[2].startswith("different: 1 differences, 1 mended, 0 left (")


def test_repair_waits_until_the_replica_takes_it(case: Case) -> None:
    populate(case)
    path = case.replica / "file1"
    flip_a_byte(path, 5)
    subprocess.run(["chattr", "+i", path], check=True)
    answers: list[tuple[int, dict[str, Any]]] = []
    mender = threading.Thread(target=lambda: answers.append(verify(case.pair, "--repair")))
    try:
        mender.start()
        eventually(lambda: case.pair.status()["refused_files"] > 0, 20, "the replica refuses")
        assert answers == []
    finally:
        subprocess.run(["chattr", "-i", path], check=True)
    mender.join(60)
    assert [code for code, _ in answers] == [0]
    assert differences(case.source, case.replica) == []


def test_verify_tells_being_written_from_different(case: Case) -> None:
    """Several of them at once, beside a writer that never pauses."""
    populate(case)
    busy = case.source / "busy"
    busy.mkdir()
    answers: list[tuple[int, dict[str, Any]]] = []
    with Churn(busy, limit=120) as churn:
        threads = [threading.Thread(target=lambda: answers.append(verify(case.pair))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        churn.stop()
    assert [code for code, _ in answers] == [0, 0, 0]
    for _, answer in answers:
        assert (answer["identical"], answer["differences"]) == (True, [])
    case.assert_same()


def test_a_difference_beside_a_writer_is_found_and_mended(case: Case) -> None:
    populate(case)
    busy = case.source / "busy"
    busy.mkdir()
    flip_a_byte(case.replica / "large", 3 * MIB)
    with Churn(busy, limit=120) as churn:
        code, answer = verify(case.pair, "--repair")
        churn.stop()
    assert code == 0, answer
    assert [(each["kind"], each["path"]) for each in answer["differences"]] == [("content", f"{case.name}/large")]
    case.assert_same()

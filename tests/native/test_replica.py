"""What somebody who looks at the replica sees, and what the replica refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import Case, Stage, on
from tests.support.deadline import eventually
from tests.support.operations import GIB, KIB, MIB, content
from tests.support.oracle import differences
from tests.support.pair import Pair, Process, free_port
from tests.support.proxy import CountingProxy

pytestmark = [pytest.mark.native, on("ext4")]

READER = """
import json, sys, threading
path, seen = sys.argv[1], {"opens": 0, "missing": 0, "mixed": 0, "values": 0}
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
print("reading", flush=True)
last = None
while not over.is_set():
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        seen["missing"] += 1
        continue
    seen["opens"] += 1
    if len(data) != 4096 or len(set(data)) != 1:
        seen["mixed"] += 1
    elif data[:1] != last:
        last = data[:1]
        seen["values"] += 1
print(json.dumps(seen))
"""


def roots(stage: Stage) -> tuple[Path, Path, Path]:
    """New empty roots and a state directory on the stage's filesystems, for a pair of the test's own."""
    stage.rounds += 1
    source, replica = (mount / f"own{stage.rounds}" for mount in (stage.source_mount, stage.replica_mount))
    source.mkdir()
    replica.mkdir()
    state = stage.directory / f"own-state{stage.rounds}"
    state.mkdir()
    return source, replica, state


def test_a_reader_never_misses_a_file_that_is_renamed_over(case: Case) -> None:
    file, temporary = case.source / "file", case.source / "temporary"
    file.write_bytes(bytes(4096))
    case.assert_same()
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, case.replica / "file"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "reading\n"
    shown: set[bytes] = set()
    deadline = time.monotonic() + 60
    for number in count():
        temporary.write_bytes(bytes([number % 251]) * 4096)
        temporary.rename(file)
        if number % 100 == 0:
            shown.add((case.replica / "file").read_bytes())
            # However fast this goes, the reader must have had something to see.
            if number >= 10_000 and (len(shown) > 10 or time.monotonic() > deadline):
                break
    case.assert_same()
    output, _ = reader.communicate(timeout=30)
    seen = json.loads(output)
    assert seen["missing"] == 0, seen
    assert seen["mixed"] == 0, seen
    assert seen["opens"] > 100, seen
    assert seen["values"] > 3, seen


def test_a_hard_linked_copy_of_the_replica_stays_as_it_was(case: Case) -> None:
    """`cp -al` is how administrators keep yesterday's state: a write in place would change yesterday."""
    (case.source / "d").mkdir()
    for name in ("file", "d/other", "grows", "shrinks", "moved"):
        (case.source / name).write_bytes(content(100 * KIB))
    case.assert_same()
    copy = case.pair.replica.with_name("yesterday")
    subprocess.run(["cp", "-al", case.replica, copy], check=True)
    reference = case.pair.replica.with_name("reference")
    subprocess.run(["cp", "-a", case.replica, reference], check=True)
    try:
        with (case.source / "file").open("r+b") as file:
            file.seek(5000)
            file.write(b"in place")
        with (case.source / "grows").open("ab") as file:
            file.write(b"more")
        os.truncate(case.source / "shrinks", 1)
        (case.source / "d/other").chmod(0o600)
        os.setxattr(case.source / "d/other", "user.new", b"x")
        (case.source / "moved").rename(case.source / "d/moved")
        case.assert_same()
        wrong = [line for line in differences(reference, copy) if "links" not in line]
        assert wrong == []
    finally:
        shutil.rmtree(copy)
        shutil.rmtree(reference)


def test_a_small_write_in_a_big_file_costs_a_small_write(stage: Stage) -> None:
    """Counted at the socket, by a proxy that both ends know nothing of."""
    source, replica, state = roots(stage)
    file = source / "big"
    middle = GIB // 2
    with file.open("wb") as opened:
        os.truncate(file, GIB)
        os.pwrite(opened.fileno(), content(2 * MIB), middle - MIB)
    port = free_port()
    with CountingProxy("127.0.0.1", port) as proxy:
        pair = Pair(source, replica, state, connect=f"127.0.0.1:{proxy.port}")
        pair.port = port
        with pair:
            pair.assert_same(holes=True)
            assert proxy.accepted == 1
            for number in range(3):
                before = proxy.out
                with file.open("r+b") as opened:
                    os.pwrite(opened.fileno(), content(4 * KIB, number + 5), middle)
                pair.assert_same(holes=True)
                assert 4 * KIB < proxy.out - before <= 4.5 * KIB, f"round {number}: {proxy.out - before} bytes"


def test_a_second_sender_is_refused(stage: Stage) -> None:
    source, replica, state = roots(stage)
    other = source.with_name(source.name + "-other")
    other.mkdir()
    (source / "file").write_bytes(b"the first's")
    (other / "intruder").write_bytes(b"the second's")
    with Pair(source, replica, state) as pair:
        second = Process(["send", str(other), pair.connect, "--state", str(state / "second")], state / "second.log")
        code = second.exit_code()
        assert code == 3, second.text()
        assert "Traceback" not in second.text(), second.text()
        assert "ready" not in second.lines
        (source / "file").write_bytes(b"still the first's")
        pair.assert_same()


def test_another_source_is_refused_after_the_first_has_gone(stage: Stage) -> None:
    """The root belongs to the tree that it is a replica of, also while its sender is away."""
    source, replica, state = roots(stage)
    other = source.with_name(source.name + "-other")
    other.mkdir()
    (source / "file").write_bytes(b"the first's")
    pair = Pair(source, replica, state)
    with pair:
        pair.assert_same()
        assert pair.sender is not None
        pair.sender.stop()
        pair.sender = None
        second = Process(["send", str(other), pair.connect, "--state", str(state / "second")], state / "second.log")
        assert second.exit_code() == 3, second.text()
        assert "Traceback" not in second.text()
    assert differences(source, replica) == []


def test_a_populated_root_is_refused_and_adopted_on_request(stage: Stage) -> None:
    source, replica, state = roots(stage)
    for number in range(20):
        (source / f"file{number}").write_bytes(content(200 * KIB, number))
    (source / "d").mkdir()
    (source / "d/deep").write_bytes(content(MIB, 99))
    subprocess.run(["cp", "-a", f"{source}/.", replica], check=True)
    (replica / "only here").write_bytes(b"the user's, until adopted")
    (replica / "file3").write_bytes(b"differs")
    before = sorted(os.listdir(replica))
    refused = Process(
        ["receive", "--root", str(replica), "--listen", f"127.0.0.1:{free_port()}", "--state", str(state / "r")],
        state / "refused.log",
    )
    assert refused.exit_code() == 3, refused.text()
    assert "--adopt" in refused.text()
    assert "Traceback" not in refused.text()
    assert "ready" not in refused.lines
    assert sorted(os.listdir(replica)) == before
    with Pair(source, replica, state, adopt=True) as pair:
        pair.assert_same()
        # One file of 200 KiB differs; the other 4.8 MiB must not travel.
        assert 200 * KIB <= pair.wire_bytes() <= 200 * KIB + 64 * KIB
    with Pair(source, replica, state) as pair:
        pair.assert_same()
        assert pair.wire_bytes() <= 64 * KIB


def test_nothing_of_its_own_is_visible(case: Case) -> None:
    """At rest the replica's root has exactly the source's entries; its own files are elsewhere."""
    (case.source / "file").write_bytes(b"x")
    case.assert_same()
    assert sorted(os.listdir(case.pair.source)) == sorted(os.listdir(case.pair.replica))


def test_the_metric_of_wire_bytes_follows_the_socket(case: Case) -> None:
    (case.source / "file").write_bytes(content(MIB))
    case.assert_same()
    sent = case.pair.wire_bytes()
    assert sent > MIB
    eventually(lambda: case.pair.metrics()['rsyncfs_wire_bytes_total{direction="sent"}'] >= sent, 5, "the metric")
    assert case.pair.metrics("receive")['rsyncfs_wire_bytes_total{direction="received"}'] > MIB

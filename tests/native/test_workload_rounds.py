"""The generator of workloads on real filesystems, without the product."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deadline import SLOW, eventually
from tests.support.filesystems import FILESYSTEMS, filesystem
from tests.support.operations import MIB
from tests.support.oracle import differences, names
from tests.support.pair import environment
from tests.workload.action import actions
from tests.workload.field import ENTRIES

pytestmark = pytest.mark.native

REFLINKS = {"clone", "clone_range", "random_clone"}
CANNOT = {
    "ext4": REFLINKS,
    "xfs": set[str](),
    "btrfs": {"collapse_range", "insert_range"},
    "tmpfs": REFLINKS
    | {"zero_range", "zero_range_past_the_end", "collapse_range", "insert_range", "random_zero", "random_zero_keep"}
    | {"random_store", "store_through_a_mapping", "store_through_a_mapping_with_msync", "store_then_close_and_unmap"}
    | {"store_into_a_page_dirtied_by_write", "store_and_grow"},
}
"""What a kernel refuses, or, of tmpfs, what nothing could show."""


@pytest.fixture(params=FILESYSTEMS)
def point(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Path]:
    with filesystem(request.param, scratch / "volume") as mounted:
        (mounted / "outside").mkdir()
        yield mounted


def start(point: Path, *words: str, name: str = "tree") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.workload", str(point / name), "--outside", str(point / "outside"), "--json"]
    return subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def over(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, wrong = process.communicate(timeout=120 * SLOW)
    assert process.returncode == 0, wrong
    tally: dict[str, Any] = json.loads(said)
    return tally


def test_all_that_the_filesystem_can_is_done_and_again_by_the_next_round(
    point: Path, request: pytest.FixtureRequest
) -> None:
    fstype = request.node.callspec.params["point"]
    for seed in ("1", "2"):
        tally = over(start(point, "--seed", seed, "--steps", "600", "--seconds", "60", "--processes", "3"))
        tried = tally["done"].keys() | tally["raced"].keys()
        assert set(actions) - tried <= CANNOT[fstype]
        assert CANNOT[fstype] <= tally["refused"].keys()
        assert sum(tally["done"].values()) > 3 * sum(tally["raced"].values())


TWO_THREADS = re.compile("(61){8} against (62){8}|(62){8} against (61){8}")
"""Of two threads that append, no seed tells which goes first."""


@pytest.mark.parametrize("point", ["xfs"], indirect=True)
def test_one_worker_makes_the_same_tree_from_the_same_seed(point: Path) -> None:
    for name in ("one", "other"):
        over(start(point, "--seed", "5", "--steps", "800", "--seconds", "100", "--processes", "1", name=name))
        for left in (point / "outside").iterdir():
            left.unlink()
    wrong = differences(point / "one", point / "other", limit=1000)
    assert [line for line in wrong if ": mtime_ns" not in line and not TWO_THREADS.search(line)] == []


@pytest.mark.parametrize("point", ["ext4"], indirect=True)
def test_it_keeps_within_its_room(point: Path) -> None:
    tally = over(start(point, "--steps", "3000", "--seconds", "60", "--processes", "3", "--room", "16"))
    assert tally["bounded"] > 0
    left = names(point / "tree")
    assert sum({info.st_ino: info.st_blocks * 512 for info in left.values()}.values()) < 32 * MIB
    assert len(left) < ENTRIES + 1000


@pytest.mark.parametrize("point", ["ext4"], indirect=True)
def test_it_ends_when_it_is_told_to(point: Path) -> None:
    process = start(point, "--seconds", "600", "--storm", "renames")
    eventually(lambda: (point / "tree" / "live").is_dir(), 30, "it begins")
    eventually(lambda: len(list((point / "tree" / "still").iterdir())) == 5, 30, "all workers are there")
    process.send_signal(signal.SIGTERM)
    assert sum(over(process)["done"].values()) > 0

"""`send --scrub`: what differs is found in the background within the period, told, counted and mended."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from tests.support.filesystems import filesystem
from tests.support.load import Churn
from tests.support.operations import MIB, content
from tests.support.oracle import differences
from tests.support.pair import Pair, free_port, rsyncfs

pytestmark = pytest.mark.native


@pytest.fixture
def roots(scratch: Path) -> Iterator[tuple[Path, Path, Path]]:
    with filesystem("ext4", scratch / "fs") as mount:
        for name in ("source", "replica"):
            (mount / name).mkdir()
        (scratch / "state").mkdir()
        yield mount / "source", mount / "replica", scratch / "state"


def flip_a_byte(path: Path, at: int) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def scrubs(pair: Pair, more: int = 1) -> None:
    """Wait until so many scrubs that are not begun yet have ended."""
    for _ in range(more):
        begun = time.time()
        eventually(lambda begun=begun: _last(pair) > begun, 60, "a scrub ends")  # type: ignore[misc]


def _last(pair: Pair) -> float:
    """When the last scrub that has ended began."""
    last = pair.status()["scrub"]["last"]
    return float(last["ended"] - last["seconds"]) if "files" in last else 0.0


def test_what_differs_is_found_and_mended(roots: tuple[Path, Path, Path]) -> None:
    source, replica, state = roots
    for number in range(20):
        (source / f"file{number}").write_bytes(content(10_000, number))
    (source / "large").write_bytes(content(20 * MIB))
    with Pair(source, replica, state, send_options=["--scrub", "1s", "--scrub-rate", "1G"]) as pair:
        assert pair.sender is not None
        scrubs(pair)
        assert pair.metrics().total("rsyncfs_scrub_findings_total") == 0
        assert "differs" not in pair.sender.text()

        flip_a_byte(replica / "large", 17 * MIB + 5)
        flip_a_byte(replica / "file3", 7)
        (replica / "file4").chmod(0o600)
        (replica / "file5").unlink()
        (replica / "foreign").write_bytes(b"not from here")
        os.utime(replica, ns=(1, source.stat().st_mtime_ns))
        eventually(lambda: differences(source, replica) == [], 60, "all is mended", every=0.5)
        scrubs(pair)
        figures = pair.metrics()
        for kind, least in (("content", 2), ("mode", 1), ("missing", 1), ("name only on the replica", 1)):
            assert figures[f'rsyncfs_scrub_findings_total{{kind="{kind}"}}'] >= least, kind
        assert figures["rsyncfs_scrub_bytes_total"] > 20 * MIB
        assert figures["rsyncfs_scrub_files_total"] >= 22
        assert figures["rsyncfs_scrub_period_seconds"] == 1
        assert figures["rsyncfs_scrub_ended_time_seconds"] > time.time() - 60
        said = pair.sender.text(20_000)
        assert "the replica differs: content: large, from byte" in said
        assert "what the scrub found is mended" in said
        last = pair.status()["scrub"]["last"]
        assert (last["found"], last["left"]) == (0, 0)
        assert "scrub:" in rsyncfs("status", "--state", pair.send_state).stdout
        assert (source / "file5").exists()


def test_a_scrub_beside_a_writer_finds_nothing(roots: tuple[Path, Path, Path]) -> None:
    source, replica, state = roots
    (source / "still").write_bytes(content(8 * MIB))
    with Pair(source, replica, state, send_options=["--scrub", "1s", "--scrub-rate", "1G"]) as pair:
        with Churn(source / "load", limit=120) as churn:
            scrubs(pair, 3)
            churn.stop()
        assert pair.sender is not None
        assert "differs" not in pair.sender.text(20_000)
        assert pair.metrics().total("rsyncfs_scrub_findings_total") == 0
        pair.assert_same()


def test_the_time_is_counted_over_restarts(roots: tuple[Path, Path, Path]) -> None:
    source, replica, state = roots
    (source / "file").write_bytes(content(10_000))
    with Pair(source, replica, state, send_options=["--scrub", "1s"]) as pair:
        scrubs(pair)
        ended = pair.status()["scrub"]["last"]["ended"]
        pair.kill_sender()
        pair.send_options = ["--scrub", "1h"]
        pair.start_sender()
        scrub = pair.status()["scrub"]
        assert scrub["last"]["ended"] >= ended
        assert scrub["last"]["files"] == 2
        assert 3000 < scrub["next_in"] <= 3600
        assert pair.metrics()["rsyncfs_scrub_ended_time_seconds"] >= ended


def test_a_scrub_goes_on_when_the_receiver_comes_back(roots: tuple[Path, Path, Path]) -> None:
    source, replica, state = roots
    for number in range(5):
        (source / f"file{number}").write_bytes(content(9 * MIB, number))
    with Pair(source, replica, state, send_options=["--scrub", "1s", "--scrub-rate", "30M"]) as pair:
        eventually(lambda: (pair.status()["scrub"]["running"] or {}).get("bytes", 0) > 0, 60, "a scrub is under way")
        pair.kill_receiver()
        flip_a_byte(replica / "file0", 5)
        pair.restart_receiver()
        eventually(lambda: differences(source, replica) == [], 90, "it is mended", every=0.5)


def test_an_odd_period_or_rate_is_told(roots: tuple[Path, Path, Path]) -> None:
    source, _, state = roots
    for words in (["--scrub", "often"], ["--scrub", "1h", "--scrub-rate", "fast"]):
        done = rsyncfs("send", source, f"127.0.0.1:{free_port()}", "--state", state / "send", *words)
        assert done.returncode == 2
        assert words[-2] in done.stderr
        assert words[-1] in done.stderr

"""A small change read in the sender's own loop: the same as a worker reads, and never in the middle of a write."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import Owed
from replicator.source.flight import Flush
from replicator.source.glance import FRESH, MOST, Glance
from replicator.source.pages import PageHashes
from replicator.source.read import Reader
from replicator.tree.handles import SourceRoot
from tests.native.volumes import VOLUMES, volume
from tests.support.filesystems import filesystem

pytestmark = pytest.mark.native

BIG = 64 << 20


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SourceRoot]:
    with (
        filesystem(request.param, tmp_path_factory.mktemp("glance") / "volume") as point,
        SourceRoot.open(point) as opened,
    ):
        yield opened


def made(source: SourceRoot, name: str, content: bytes) -> Path:
    path = Path(source.path) / name
    path.write_bytes(content)
    return path


def flush(source: SourceRoot, path: Path, *ranges: tuple[int, int], known: int | None = None) -> Flush:
    id, _ = source.id_at(source.fd, path.name.encode())
    now = time.monotonic_ns()
    return Flush(Owed(id, 1, now, written=now, ranges=RangeSet(ranges)), known)


def test_what_is_read_at_once_is_what_a_worker_reads(source: SourceRoot) -> None:
    path = made(source, "same", os.urandom(20_000))
    os.setxattr(path, b"user.note", b"kept")
    ranges = ((0, 10), (4096, 8192), (19_990, 20_000))
    at_once = Glance(source).read(flush(source, path, *ranges, known=20_000))
    by_worker = Reader(source, PageHashes()).read(flush(source, path, *ranges, known=20_000))
    assert at_once is not None
    assert at_once.part is not None
    assert by_worker.part is not None
    assert at_once.part.fact == by_worker.part.fact
    assert at_once.part.data == by_worker.part.data
    assert at_once.part.sent == by_worker.part.sent == list(ranges)
    assert at_once.flush.left == by_worker.flush.left == RangeSet()
    assert at_once.flush.size == by_worker.flush.size == 20_000
    assert at_once.part.waited <= at_once.part.read


def test_the_tail_that_a_new_size_uncovers_goes_along(source: SourceRoot) -> None:
    path = made(source, "tail", b"old" + b"new line\n")
    outcome = Glance(source).read(flush(source, path, (3, 12), known=1))
    assert outcome is not None
    assert outcome.part is not None
    assert outcome.part.data == [(1, b"ldnew line\n")]
    assert outcome.part.fact.size == 12


def test_what_is_not_plain_is_left_to_a_worker(source: SourceRoot) -> None:
    path = made(source, "plain", bytes(2 * MOST))
    glance = Glance(source)
    assert glance.read(flush(source, path, (0, MOST))) is not None
    assert glance.read(flush(source, path, (0, MOST + 1))) is None
    assert glance.read(flush(source, path)) is None
    assert glance.read(flush(source, path, (0, 2 * MOST + 1))) is None  # its size is still to come
    for change in ("whole", "check", "deep", "mapped", "holes"):
        other = flush(source, path, (0, 10))
        setattr(other.owed, change, True)
        assert glance.read(other) is None
    for name, value in (("lowest", 0), ("folios", RangeSet([(0, 10)])), ("written", time.monotonic_ns() - 2 * FRESH)):
        other = flush(source, path, (0, 10))
        setattr(other.owed, name, value)
        assert glance.read(other) is None
    later = flush(source, path, (0, 10))
    later.left = RangeSet([(0, 10)])
    assert glance.read(later) is None


def test_what_has_gone_or_is_not_in_memory_is_left_to_a_worker(source: SourceRoot) -> None:
    path = made(source, "cold", bytes(MOST))
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert Glance(source).read(flush(source, path, (4096, 8192))) is None
        dead = flush(source, path, (0, 10))
        os.pread(fd, MOST, 0)
        assert Glance(source).read(dead) is not None
        path.unlink()
        assert Glance(source).read(dead) is None  # a worker tells that it is gone
    finally:
        os.close(fd)


def test_a_write_that_is_under_way_is_never_seen_in_part(source: SourceRoot) -> None:
    """Its size grows step by step under the inode's lock."""
    path = made(source, "growing", b"")
    content, glance, sizes = bytes(BIG), Glance(source), set()
    fd = os.open(path, os.O_WRONLY)
    writer = threading.Thread(target=lambda: os.pwrite(fd, content, 0))
    writer.start()
    try:
        while writer.is_alive():
            seen = flush(source, path, (0, 1))
            outcome = glance.read(seen)
            if outcome is not None and outcome.part is not None:
                sizes.add(outcome.part.fact.size)
    finally:
        writer.join()
        os.close(fd)
    assert sizes <= {BIG}


@pytest.mark.parametrize("fstype", [name for name in VOLUMES if not name.startswith(("ext4", "xfs"))])
def test_where_the_lock_cannot_be_tried_a_worker_reads(fstype: str, tmp_path: Path) -> None:
    with volume(fstype, tmp_path / "volume") as point, SourceRoot.open(point) as opened:
        assert Glance(opened).read(flush(opened, made(opened, "file", b"content"), (0, 7))) is None

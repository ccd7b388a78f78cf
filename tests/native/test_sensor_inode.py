"""Sizes and attributes on ext4 and XFS: the lowest size is known, and attributes alone report no bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator.capture.event import EventFlag, EventKind
from tests.native.traced import Traced, traced

pytestmark = pytest.mark.native


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    with traced(request.param, tmp_path_factory.mktemp(request.param) / "fs") as here:
        yield here


def path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize("size", [0, 1, 3000, 4096, 99_999])
def test_truncate_down(place: Traced, size: int) -> None:
    for shrink in (os.ftruncate, lambda fd, size: os.truncate(path_of(fd), size)):
        with place.file(b"x" * 100_000) as fd:
            shrink(fd, size)
            records = place.records(fd)
            assert records.lowest == size, records
            assert not records.touched, records


def test_truncate_up_never_reports_less_than_the_file_had(place: Traced) -> None:
    for grow in (os.ftruncate, lambda fd, size: os.truncate(path_of(fd), size)):
        with place.file(b"x" * 10_000) as fd:
            grow(fd, 5_000_000_000)
            records = place.records(fd)
            assert len(records)
            assert records.lowest is not None
            assert 10_000 <= records.lowest <= 5_000_000_000
            assert not records.touched, records


def test_o_trunc(place: Traced) -> None:
    with place.file(b"x" * 10_000) as fd:
        os.close(os.open(path_of(fd), os.O_WRONLY | os.O_TRUNC))
        assert place.records(fd).lowest == 0


def test_down_then_up_is_not_mistaken_for_nothing(place: Traced) -> None:
    with place.file(b"x" * 100_000) as fd:
        os.ftruncate(fd, 60_000)
        os.ftruncate(fd, 30_000)
        os.ftruncate(fd, 100_000)
        os.ftruncate(fd, 70_000)
        os.ftruncate(fd, 100_000)
        assert place.records(fd).lowest == 30_000


def test_down_then_written_up(place: Traced) -> None:
    with place.file(b"x" * 100_000) as fd:
        os.ftruncate(fd, 5000)
        os.pwrite(fd, b"y" * 10, 100_000)
        records = place.records(fd)
        assert records.lowest == 5000
        assert records.covers(100_000, 10)
        assert records.stays_within(100_000, 10), records


def test_writing_on_does_not_lower_the_size(place: Traced) -> None:
    with place.file(b"x" * 10_000) as fd:
        os.fstat(fd)
        os.pwrite(fd, b"y" * 10_000, 10_000)
        assert place.records(fd).lowest in (None, 10_000, 20_000)


ATTRIBUTES: dict[str, Callable[[int], None]] = {
    "chmod": lambda fd: os.chmod(path_of(fd), 0o4751),
    "fchmod": lambda fd: os.fchmod(fd, 0o600),
    "chown": lambda fd: os.chown(path_of(fd), 1234, 5678),
    "utimens": lambda fd: os.utime(fd, ns=(1_000_000_007, 2_000_000_009)),
    "setxattr": lambda fd: os.setxattr(fd, "user.note", b"hello"),
    "trusted": lambda fd: os.setxattr(fd, "trusted.note", b"hello"),
    "long xattr": lambda fd: os.setxattr(fd, "user.long", b"z" * 2000),
    "link": lambda fd: os.link(path_of(fd), path_of(fd) + ".link"),
    "rename": lambda fd: os.rename(path_of(fd), path_of(fd) + ".moved"),
    "unlink": lambda fd: os.unlink(path_of(fd)),
}


@pytest.mark.parametrize("change", ATTRIBUTES.values(), ids=ATTRIBUTES.keys())
def test_attributes_alone(place: Traced, change: Callable[[int], None]) -> None:
    with place.file(b"x" * 10_000) as fd:
        change(fd)
        records = place.records(fd)
        assert EventKind.ATTR in records.kinds, records
        assert not records.touched, records
        assert records.lowest is None, records
        assert records.flagged(EventKind.ATTR, EventFlag.BEFORE)


def test_mtime_alone(place: Traced) -> None:
    from replicator import syscalls

    with place.file(b"x") as fd:
        syscalls.utimens(fd, b"", None, 77, 0x1000)
        assert os.fstat(fd).st_mtime_ns == 77
        assert EventKind.ATTR in place.records(fd).kinds


def test_removing_an_xattr(place: Traced) -> None:
    with place.file(b"x") as fd:
        os.setxattr(fd, "user.note", b"hello")
        place.records(fd)
        os.removexattr(fd, "user.note")
        assert EventKind.ATTR in place.records(fd).kinds


def test_a_capability_stripped_by_a_write(place: Traced) -> None:
    with place.file(b"x" * 100) as fd:
        os.setxattr(fd, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        place.records(fd)
        os.pwrite(fd, b"y", 0)
        with pytest.raises(OSError, match="No data"):
            os.getxattr(fd, "security.capability")
        records = place.records(fd)
        assert EventKind.ATTR in records.kinds, records
        assert records.covers(0, 1)


def test_directories_are_told_when_names_change(place: Traced) -> None:
    directory = place.root / "names"
    directory.mkdir()
    number = directory.stat().st_ino
    place.drain()
    changes: list[Callable[[], object]] = [
        lambda: (directory / "a").touch(),
        lambda: (directory / "a").rename(directory / "b"),
        lambda: (directory / "b").unlink(),
        lambda: (directory / "sub").mkdir(),
        lambda: (directory / "sub").rmdir(),
        lambda: directory.chmod(0o700),
    ]
    for change in changes:
        change()
        events = place.drain()
        mine = events[events["ino"] == number]
        assert set(mine["kind"].tolist()) == {EventKind.ATTR}


def test_making_files_reports_nothing_under_a_wrong_identity(place: Traced) -> None:
    directory = place.root / "made"
    directory.mkdir()
    place.drain()
    known = {directory.stat().st_ino, place.root.stat().st_ino}
    for index in range(50):
        path: Path = directory / str(index)
        path.write_bytes(b"")
        known.add(path.stat().st_ino)
    events = place.drain()
    assert set(events["ino"].tolist()) <= known
    generations: dict[int, set[int]] = {}
    for event in events:
        generations.setdefault(int(event["ino"]), set()).add(int(event["gen"]))
    assert all(len(seen) == 1 for seen in generations.values())

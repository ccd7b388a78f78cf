"""Scans on real filesystems: every inode of them, held to what statx and file handles say of it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from replicator import syscalls
from replicator.errors import EnvironmentFault, UsageError
from replicator.model import FileId
from replicator.scan import INODE, Scan, scan
from replicator.scan import pending as pending_module
from replicator.tree.handles import SourceRoot
from tests.native.zoo import Known, change, populated, table, walk
from tests.support.deadline import eventually
from tests.support.filesystems import filesystem, run, unmount

pytestmark = pytest.mark.native

SIZE = 512 * 1024 * 1024


class Made(NamedTuple):
    """How a filesystem is made and mounted."""

    fstype: str
    mkfs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    size: int = SIZE


MADE = {
    "ext4": Made("ext4"),
    "ext4, inodes of 128 bytes": Made("ext4", ("-I", "128")),
    "ext4, inodes of 1024 bytes": Made("ext4", ("-I", "1024", "-O", "inline_data")),
    "ext4 without checksums": Made("ext4", ("-O", "^metadata_csum")),
    "ext4 without checksums of groups": Made("ext4", ("-O", "^metadata_csum,^uninit_bg")),
    "ext4 in clusters": Made("ext4", ("-O", "bigalloc")),
    "ext4 with inline data": Made("ext4", ("-O", "inline_data")),
    "ext4 in blocks of 1 KiB": Made("ext4", ("-b", "1024")),
    "ext4 with scattered descriptors": Made("ext4", ("-O", "meta_bg,^resize_inode")),
    "ext4 without flexible groups": Made("ext4", ("-O", "^flex_bg,^64bit")),
    "ext4 with inodes of its own": Made("ext4", ("-O", "ea_inode,large_dir,orphan_file")),
    "ext4 without a journal": Made("ext4", ("-O", "^has_journal")),
    "ext4, lazy": Made("ext4", options=("lazytime",)),
    "ext4, data in the journal": Made("ext4", options=("data=journal",)),
    "xfs": Made("xfs"),
    "xfs, lazy": Made("xfs", options=("lazytime",)),
    "btrfs": Made("btrfs"),
    "tmpfs": Made("tmpfs"),
}


@pytest.fixture(params=MADE)
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    made = MADE[request.param]
    with filesystem(made.fstype, tmp_path / "volume", made.size, made.options, made.mkfs) as point:
        yield point


@pytest.fixture(params=("ext4", "xfs", "btrfs", "tmpfs"))
def usual(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with filesystem(request.param, tmp_path / "volume", SIZE) as point:
        yield point


def begin(source: SourceRoot, how: str = "auto", since: str | None = None) -> Scan:
    """As the sender does it."""
    syscalls.syncfs(source.read_fd)
    return scan(source, how, since)


def test_every_inode_is_told_as_statx_tells_it(mounted: Path, caplog: pytest.LogCaptureFixture) -> None:
    with populated(mounted) as files, SourceRoot.open(mounted) as source:
        for how in ("auto", "walk"):
            made = begin(source, how)
            assert made.complete
            assert table(made) == walk(source)
        before = walk(source)
        change(mounted, files)
        for how in ("auto", "walk"):
            assert table(begin(source, how)) == walk(source)
        assert 20 < len(dict(walk(source).items() - before.items())) < 50
    assert not caplog.records


def test_xfs_numbers_beyond_32_bits(tmp_path: Path) -> None:
    with filesystem("xfs", tmp_path / "volume", 8 * 2**40, ("inode64",)) as point, SourceRoot.open(point) as source:
        for number in range(64):  # each new directory goes to another allocation group
            (point / str(number)).mkdir()
            (point / str(number) / "file").touch()
        oracle = walk(source)
        assert max(id.ino for id in oracle) > 2**32
        assert table(begin(source)) == table(begin(source, "walk")) == oracle


def test_a_source_within_a_filesystem(usual: Path) -> None:
    """The scan may tell of its surroundings; a walk does not."""
    inside, outside = usual / "inside", usual / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "file").touch()
    with populated(inside), SourceRoot.open(inside) as source, SourceRoot.open(usual) as everything:
        oracle = walk(source)
        assert table(begin(source, "walk")) == oracle
        assert oracle.items() <= table(begin(source)).items() <= walk(everything).items()


def test_numbers_ascend(usual: Path) -> None:
    with populated(usual), SourceRoot.open(usual) as source:
        if source.fstype in ("ext4", "btrfs"):
            for rows in begin(source):
                assert rows.dtype == INODE
                assert (rows["ino"][1:] > rows["ino"][:-1]).all()


def test_only_what_changed_differs(usual: Path) -> None:
    with populated(usual) as files, SourceRoot.open(usual) as source:
        first, oracle_first = table(begin(source)), walk(source)
        change(usual, files)
        second, oracle_second = table(begin(source)), walk(source)
        assert set(second.items()) - set(first.items()) == set(oracle_second.items()) - set(oracle_first.items())
        assert first.keys() - second.keys() == oracle_first.keys() - oracle_second.keys() != set()


# ext4: what the tables know


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    with filesystem("ext4", tmp_path / "volume", SIZE) as point:
        yield point


def test_what_is_not_written_to_disk_is_in_the_tables(ext4: Path) -> None:
    """Without syncfs: the kernel changes its tables in the very pages that are read here."""
    with populated(ext4) as files, SourceRoot.open(ext4) as source:
        syncing = begin(source)
        for path in files[:50]:
            path.chmod(0o611)
            os.truncate(path, 5)
            os.setxattr(path, "user.more", b"x")
        (ext4 / "unsynced").symlink_to("somewhere")
        assert table(scan(source)) == walk(source)
        del syncing


def test_a_file_that_grows_has_its_size_when_that_is_on_disk(ext4: Path) -> None:
    with SourceRoot.open(ext4) as source, (ext4 / "file").open("wb", buffering=0) as file:
        file.write(b"x" * 4096)
        (growing,) = [
            known.size for id, known in table(scan(source)).items() if id.ino == os.fstat(file.fileno()).st_ino
        ]
        assert growing in (0, 4096)
        assert table(begin(source)) == walk(source)


def test_numbers_that_are_used_again_have_their_new_generation(ext4: Path) -> None:
    with SourceRoot.open(ext4) as source:
        for round in range(5):
            for number in range(200):
                (ext4 / f"{round} {number}").touch()
            assert table(scan(source)) == walk(source)
            for number in range(200):
                (ext4 / f"{round} {number}").unlink()


def test_a_filesystem_that_grew_is_read_to_its_end(tmp_path: Path) -> None:
    directory = tmp_path / "volume"
    with filesystem("ext4", directory, SIZE) as point:
        unmount(point)
        with (directory / "image").open("r+b") as image:
            image.truncate(3 * SIZE)
        run("e2fsck", "-f", "-p", directory / "image")
        run("resize2fs", directory / "image")
        run("mount", "-o", "loop", directory / "image", point)
        for number in range(40):
            (point / str(number)).mkdir()
            for file in range(100):
                (point / str(number) / str(file)).touch()
        with SourceRoot.open(point) as source:
            assert table(begin(source)) == walk(source)


def test_without_the_device_the_tree_is_walked(ext4: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = run("findmnt", "-n", "-o", "SOURCE", ext4).strip()
    with populated(ext4), SourceRoot.open(ext4) as source:
        run("mount", "--bind", "/dev/null", device)
        try:
            made = begin(source)
        finally:
            run("umount", device)
        assert made.complete
        assert table(made) == walk(source)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(ext4) in caplog.text
    assert "Walking the tree instead" in caplog.text


def test_a_damaged_inode_is_passed_over_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "volume"
    with filesystem("ext4", directory, SIZE, mkfs=("-O", "^metadata_csum")) as point:
        for name in ("sound", "damaged", "sound, too"):
            (point / name).touch()
        ino = (point / "damaged").stat().st_ino
        unmount(point)
        run("debugfs", "-w", "-R", f"set_inode_field <{ino}> mode 0150644", directory / "image")
        run("mount", "-o", "loop", directory / "image", point)
        with SourceRoot.open(point) as source:
            found = table(begin(source))
            assert {"sound", "sound, too"} == {
                name for name in os.listdir(point) if name != "lost+found" and _ino(point / name) in _inos(found)
            }
            assert "1 inodes" in caplog.text
            told: set[int] = set()
            with pytest.raises(EnvironmentFault, match="damaged below it: "):  # noqa: PT012
                for rows in begin(source, "walk"):
                    told.update(rows["ino"].tolist())
            assert told == _inos(found)


def test_a_device_that_fails_is_told_with_its_place(tmp_path: Path) -> None:
    directory = tmp_path / "volume"
    with filesystem("ext4", directory, SIZE, mkfs=("-O", "^flex_bg,^resize_inode")) as point:
        for number in range(64):  # directories at the top go to other groups of blocks
            (point / str(number)).mkdir()
            (point / str(number) / "file").touch()
        unmount(point)
        run("mount", "-o", "loop,ro", directory / "image", point)
        with SourceRoot.open(point) as source:
            made = scan(source)
            os.truncate(directory / "image", SIZE // 2)
            with pytest.raises(EnvironmentFault, match=r"inodes of .* at byte \d+ of its device: .*--scan walk"):
                table(made)


def _ino(path: Path) -> int:
    """As the directory has it: the inode may not be readable."""
    with os.scandir(path.parent) as entries:
        (ino,) = [entry.inode() for entry in entries if entry.name == path.name]
    return ino


def _inos(found: dict[FileId, Known]) -> set[int]:
    return {id.ino for id in found}


# btrfs: what changed since


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    with filesystem("btrfs", tmp_path / "volume", SIZE) as point:
        yield point


def test_what_changed_since_a_scan_is_in_the_next(btrfs: Path) -> None:
    with populated(btrfs) as files, SourceRoot.open(btrfs) as source:
        last = begin(source)
        assert last.complete
        table(last)
        run("btrfs", "filesystem", "sync", btrfs)
        for round in range(5):
            before = walk(source)
            change(btrfs, files, seed=round) if round == 0 else _touch(files, round)
            made = begin(source, since=last.mark())
            found, now = table(made), walk(source)
            assert not made.complete
            assert found.items() <= now.items()
            assert now.items() - before.items() <= found.items()
            last = made
        _quiet(btrfs)
        marked = begin(source, since=last.mark())
        table(marked)
        _quiet(btrfs)
        assert len(table(begin(source, since=marked.mark()))) < len(now) / 4


def _touch(files: list[Path], seed: int) -> None:
    for path in files[seed::17]:
        if path.exists():
            path.chmod(0o600 + seed)


def _quiet(point: Path) -> None:
    """Two transactions, so that the one of the last change lies behind."""
    for number in range(2):
        (point / f"quiet {number}").touch()
        run("btrfs", "filesystem", "sync", point)


def test_what_changes_in_the_transaction_of_a_scan_is_in_the_next(btrfs: Path) -> None:
    (btrfs / "file").touch()
    with SourceRoot.open(btrfs) as source:
        syncfs = begin(source)
        (btrfs / "begins a transaction").touch()
        last = scan(source)
        table(last)
        (btrfs / "file").chmod(0o611)
        assert walk(source).items() - table(syncfs).items() <= table(begin(source, since=last.mark())).items()


def test_subvolumes_in_the_tree_are_told_and_others_are_not(btrfs: Path) -> None:
    run("btrfs", "subvolume", "create", btrfs / "data")
    run("btrfs", "subvolume", "create", btrfs / "elsewhere")
    (btrfs / "elsewhere" / "file").touch()
    (btrfs / "data" / "directory").mkdir()
    run("btrfs", "subvolume", "create", btrfs / "data" / "directory" / "inner")
    run("btrfs", "subvolume", "create", btrfs / "data" / "directory" / "inner" / "innermost")
    (btrfs / "data" / "directory" / "inner" / "innermost" / "file").write_text("x")
    with populated(btrfs / "data"):
        run("btrfs", "subvolume", "snapshot", btrfs / "data", btrfs / "data" / "copy")
        run("btrfs", "subvolume", "snapshot", "-r", btrfs / "data", btrfs / "frozen")
        for path in ("data", "data/copy", "frozen", ".", "elsewhere", "data/directory"):
            with SourceRoot.open(btrfs / path) as source:
                oracle = walk(source)
                found = table(begin(source))
                assert table(begin(source, "walk")) == oracle
                assert oracle.items() <= found.items()
                if path != "data/directory":  # within its subvolume, the surroundings come along
                    assert found == oracle
                else:
                    assert {id.root for id in found} == {id.root for id in oracle}


def test_a_new_snapshot_is_told_whole(btrfs: Path) -> None:
    with populated(btrfs), SourceRoot.open(btrfs) as source:
        _quiet(btrfs)
        last = begin(source)
        table(last)
        before = walk(source)
        run("btrfs", "subvolume", "snapshot", btrfs, btrfs / "copy")
        made = begin(source, since=last.mark())
        assert walk(source).items() - before.items() <= table(made).items()
        assert not made.complete


def test_a_removed_subvolume_is_not_told(btrfs: Path) -> None:
    run("btrfs", "subvolume", "create", btrfs / "inner")
    (btrfs / "inner" / "file").touch()
    with SourceRoot.open(btrfs) as source:
        made = begin(source)
        run("btrfs", "subvolume", "delete", btrfs / "inner")
        table(made)
        assert table(begin(source)) == walk(source)


def test_a_mark_of_another_time_or_place_is_void(btrfs: Path) -> None:
    with populated(btrfs), SourceRoot.open(btrfs) as source:
        oracle = walk(source)
        mark = begin(source).mark()
        assert mark is not None
        fsid, boot, number = mark.split(":")
        for void in (
            "",
            "1",
            f"{fsid}:{boot}:{int(number) + 1000}",
            f"{fsid}:{boot}:-1",
            f"{'0' * 32}:{boot}:{number}",
            f"{fsid}:{'0' * 36}:{number}",
        ):
            made = begin(source, since=void)
            assert made.complete
            assert table(made) == oracle


def test_only_btrfs_has_marks(usual: Path) -> None:
    with SourceRoot.open(usual) as source:
        assert (begin(source).mark() is None) == (source.fstype != "btrfs")
        assert begin(source, "walk").mark() is None
        assert begin(source, "walk", since="anything").complete


# Walks


def test_a_walk_keeps_few_directories_open(usual: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_module, "OPEN", 3)
    deep = usual
    for _ in range(60):
        for side in ("left", "right"):
            (deep / side / "leaf").mkdir(parents=True)
        deep = deep / "left"
    with SourceRoot.open(usual) as source:
        descriptors = set(os.listdir("/proc/self/fd"))
        assert table(begin(source, "walk")) == walk(source)
        assert set(os.listdir("/proc/self/fd")) == descriptors


def test_a_walk_does_not_see_what_is_mounted_inside(usual: Path) -> None:
    (usual / "point" / "covered").mkdir(parents=True)
    run("mount", "-t", "tmpfs", "inner", usual / "point")
    try:
        (usual / "point" / "foreign").touch()
        with SourceRoot.open(usual) as source:
            oracle = walk(source)
            assert table(begin(source, "walk")) == oracle
            assert len(oracle) == len(table(begin(source)))
    finally:
        run("umount", usual / "point")


def test_a_tree_that_changes_is_walked_to_its_end(usual: Path) -> None:
    with populated(usual), SourceRoot.open(usual) as source:
        still = walk(source)
        stop = threading.Event()

        def churn() -> None:
            while not stop.is_set():
                (usual / "busy" / "within").mkdir(parents=True)
                for number in range(20):
                    (usual / "busy" / "within" / str(number)).touch()
                (usual / "busy").rename(usual / "lazy")
                for number in range(20):
                    (usual / "lazy" / "within" / str(number)).unlink()
                (usual / "lazy" / "within").rmdir()
                (usual / "lazy").rmdir()

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            for how in ("auto", "walk") * 10:
                ids = {id for rows in begin(source, how) for id in rows[["root", "ino", "gen"]].tolist()}
                assert {(id.root, id.ino, id.gen) for id in still} <= ids
        finally:
            stop.set()
            thread.join()


def test_a_scan_that_is_given_up_leaves_nothing_behind(usual: Path) -> None:
    with populated(usual), SourceRoot.open(usual) as source:
        descriptors = set(os.listdir("/proc/self/fd"))
        for how in ("auto", "walk"):
            batches = iter(begin(source, how))
            assert len(next(batches))
            batches.close()  # type: ignore[attr-defined]
            begin(source, how)
            eventually(lambda: not [one for one in threading.enumerate() if one.name == "scan"], what="no threads")
            assert set(os.listdir("/proc/self/fd")) == descriptors


def test_an_unknown_way_is_refused(usual: Path) -> None:
    with SourceRoot.open(usual) as source, pytest.raises(UsageError, match="auto, walk"):
        scan(source, "swim")

"""The tests' writers do what their names say, and the oracle sees what they did; without the product."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import syscalls
from tests.support.filesystems import FILESYSTEMS, filesystem
from tests.support.operations import BLOCK, MIB, Operation, Unsupported, content, operations, prepare
from tests.support.oracle import differences, first_difference

pytestmark = pytest.mark.native

SAME_BYTES = {"fallocate_within", "fallocate_keep_size"}
"""Operations that leave content, size and names alone."""


@pytest.fixture(scope="module", params=FILESYSTEMS)
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with filesystem(request.param, tmp_path_factory.mktemp(request.param)) as point:
        yield request.param, point


def changed_blocks(before: Path, after: Path) -> int:
    """Blocks of `after` with bytes that `before` has not at that place; zeros past its end are not new bytes."""
    with before.open("rb") as one, after.open("rb") as other:
        old = one.read()
        count = 0
        fd = other.fileno()
        for offset in range(0, min(os.fstat(fd).st_size, 8 * MIB), BLOCK):
            now = os.pread(fd, BLOCK, offset)
            count += now != old[offset : offset + BLOCK].ljust(len(now), b"\0") and now.strip(b"\0") != b""
        return count


@pytest.mark.parametrize("row", operations, ids=lambda row: row.name)
def test_an_operation_changes_what_it_says(mounted: tuple[str, Path], row: Operation) -> None:
    _, point = mounted
    directory, copy = point / row.name, point / "copy"
    directory.mkdir()
    scene = prepare(directory, row.size)
    shutil.copytree(directory, copy, copy_function=shutil.copy2)
    shutil.copystat(directory, copy)
    try:
        assert differences(copy, directory) == []
        try:
            allowed = sum(row.run(scene))
        except Unsupported:
            assert differences(copy, directory) == []
            return
        wrong = [line for line in differences(copy, directory) if "mtime" not in line]
        assert bool(wrong) == (row.name not in SAME_BYTES), wrong
        if scene.file.exists() and scene.file.stat().st_size <= 8 * MIB:
            assert changed_blocks(copy / "file", scene.file) * BLOCK <= allowed
    finally:
        shutil.rmtree(directory)
        shutil.rmtree(copy)


def _mtime(path: Path) -> None:
    info = path.stat()
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1))


def _overwrite(path: Path) -> None:
    info = path.stat()
    with path.open("r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def _other_link(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"")
    os.utime(path, ns=(0, 0))


CHANGES: dict[str, Callable[[Path], None]] = {
    "one byte": lambda top: _overwrite(top / "file"),
    "size": lambda top: os.truncate(top / "file", 5),
    "mtime": lambda top: _mtime(top / "file"),
    "directory mtime": lambda top: _mtime(top / "directory"),
    "mode": lambda top: (top / "file").chmod(0o4755),
    "owner": lambda top: os.chown(top / "file", 1, -1),
    "group": lambda top: os.chown(top / "file", -1, 1),
    "user xattr": lambda top: os.setxattr(top / "file", "user.a", b"b"),
    "trusted xattr": lambda top: os.setxattr(top / "file", "trusted.a", b"b"),
    "xattr of a link": lambda top: os.setxattr(top / "link", "trusted.a", b"b", follow_symlinks=False),
    "capability": lambda top: os.setxattr(
        top / "file", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000")
    ),
    "target": lambda top: _replace_link(top / "link"),
    "device": lambda top: _replace_device(top / "device"),
    "type": lambda top: _replace_fifo(top / "fifo"),
    "missing": lambda top: (top / "file2").unlink(),
    "reserved name": lambda top: (top / ".rsyncfs-limbo").mkdir(),
    "hard link": lambda top: _other_link(top / "twin"),
    "holes": lambda top: _punch(top / "zeros"),
}


def _replace_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


def _replace_device(path: Path) -> None:
    path.unlink()
    os.mknod(path, 0o20600, os.makedev(1, 5))


def _replace_fifo(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _punch(path: Path) -> None:
    with path.open("r+b") as file:
        syscalls.fallocate(file.fileno(), syscalls.PUNCH_HOLE | syscalls.KEEP_SIZE, 0, MIB)


def _tree(top: Path) -> None:
    top.mkdir()
    (top / "directory").mkdir()
    (top / "file").write_bytes(content(10_000))
    (top / "file2").write_bytes(b"")
    (top / "zeros").write_bytes(bytes(MIB))
    (top / "one").write_bytes(b"")
    os.link(top / "one", top / "twin")
    (top / "link").symlink_to("nowhere")
    os.mkfifo(top / "fifo")
    os.mknod(top / "device", 0o20600, os.makedev(1, 3))
    for path in (*top.iterdir(), top):
        os.utime(path, ns=(0, 0), follow_symlinks=False)


@pytest.mark.parametrize("what", CHANGES)
def test_the_oracle_sees(mounted: tuple[str, Path], what: str) -> None:
    _, point = mounted
    one, other = point / "one", point / "other"
    try:
        _tree(one)
        _tree(other)
        assert differences(one, other, holes=True) == []
        CHANGES[what](other)
        os.utime(other, ns=(0, 0))
        wrong = differences(one, other, holes=True)
        assert wrong, what
        assert len({line.split(":")[0] for line in wrong}) <= 2, wrong
    finally:
        shutil.rmtree(one)
        shutil.rmtree(other)


def test_the_oracle_reads_only_data_of_a_sparse_file(mounted: tuple[str, Path]) -> None:
    _, point = mounted
    paths = [point / "sparse1", point / "sparse2"]
    for number, path in enumerate(paths):
        with path.open("wb") as file:
            file.truncate(1 << 40)
            os.pwrite(file.fileno(), bytes([number]), 1 << 39)
    one, other = map(os.fsencode, paths)
    assert str(first_difference(one, other)).startswith(f"bytes differ at {1 << 39}:")
    for path in paths:
        path.unlink()

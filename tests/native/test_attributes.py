"""Attributes: each alone reaches the replica, and no data is sent for it."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Case
from tests.support.operations import MIB, content

pytestmark = pytest.mark.native

FACTS = 8 * 1024
"""What an attribute may cost on the wire; the file has a megabyte."""

CAP_NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
"""A security.capability of revision 2: net_raw, permitted and effective."""


def _acl(*words: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        done = subprocess.run(["setfacl", *words, path], capture_output=True, check=False, text=True)
        assert done.returncode == 0, done.stderr

    return change


def _mtime(path: Path) -> None:
    os.utime(path, ns=(1, 1_234_567_890_123_456_789), follow_symlinks=False)


def _old_mtime(path: Path) -> None:
    os.utime(path, ns=(0, 1))


def _mtime_alone(path: Path) -> None:
    """Not the other time with it, as utimensat with UTIME_OMIT: of this fanotify says no word of attributes."""
    subprocess.run(["touch", "-m", "-d", "@987654321.123456789", path], check=True)


def _set(name: str, value: bytes) -> Callable[[Path], None]:
    return lambda path: os.setxattr(path, name, value)


CHANGES: dict[str, Callable[[Path], None]] = {
    "chmod": lambda path: path.chmod(0o600),
    "chmod-setuid": lambda path: path.chmod(0o4711),
    "chmod-setgid": lambda path: path.chmod(0o2755),
    "chmod-nothing": lambda path: path.chmod(0),
    "chown": lambda path: os.chown(path, 12345, -1),
    "chgrp": lambda path: os.chown(path, -1, 54321),
    "mtime": _mtime,
    "mtime-of-1970": _old_mtime,
    "mtime-alone": _mtime_alone,
    "xattr-user": _set("user.comment", b"hello"),
    "xattr-user-binary": _set("user.binary", bytes(range(256))),
    "xattr-user-empty": _set("user.empty", b""),
    "xattr-trusted": _set("trusted.mine", b"root's"),
    "capability": _set("security.capability", CAP_NET_RAW),
    "acl": _acl("-m", "u:1234:rw,g:4321:r"),
}


@pytest.fixture
def file(case: Case) -> Path:
    path = case.source / "file"
    path.write_bytes(content(MIB))
    case.assert_same()
    return path


@pytest.mark.parametrize("what", CHANGES)
def test_an_attribute_of_a_file(case: Case, file: Path, what: str) -> None:
    before = case.pair.wire_bytes()
    CHANGES[what](file)
    case.assert_same()
    assert case.pair.wire_bytes() - before <= FACTS


DIRECTORY_CHANGES: dict[str, Callable[[Path], None]] = {
    **{name: change for name, change in CHANGES.items() if name != "capability"},
    "acl-default": _acl("-m", "d:u:1234:rwx"),
    "sticky": lambda path: path.chmod(0o1777),
}


@pytest.mark.parametrize("what", DIRECTORY_CHANGES)
def test_an_attribute_of_a_directory(case: Case, what: str) -> None:
    path = case.source / "directory"
    path.mkdir()
    (path / "inhabitant").write_bytes(content(MIB))
    case.assert_same()
    before = case.pair.wire_bytes()
    DIRECTORY_CHANGES[what](path)
    case.assert_same()
    assert case.pair.wire_bytes() - before <= FACTS


def test_attributes_of_what_is_no_file(case: Case) -> None:
    link, fifo, device = (case.source / name for name in ("link", "fifo", "device"))
    link.symlink_to("nowhere")
    os.mkfifo(fifo)
    os.mknod(device, 0o20600, os.makedev(1, 3))
    case.assert_same()
    os.lchown(link, 1, 2)
    os.utime(link, ns=(5, 1_000_000_000_000_000_005), follow_symlinks=False)
    os.setxattr(link, "trusted.t", b"on the link", follow_symlinks=False)
    for path in (fifo, device):
        os.chown(path, 3, 4)
        path.chmod(0o640)
        _mtime(path)
        os.setxattr(path, "trusted.t", b"on it")
    case.assert_same()


def test_xattrs_changed_and_removed(case: Case, file: Path) -> None:
    os.setxattr(file, "user.a", b"1")
    os.setxattr(file, "user.b", b"1")
    case.assert_same()
    os.setxattr(file, "user.a", b"22")
    os.removexattr(file, "user.b")
    case.assert_same()
    os.removexattr(file, "user.a")
    case.assert_same()


def test_an_acl_taken_away(case: Case, file: Path) -> None:
    _acl("-m", "u:1234:rw")(file)
    case.assert_same()
    _acl("-b")(file)
    case.assert_same()


def test_a_capability_stripped_by_a_write(case: Case, file: Path) -> None:
    os.setxattr(file, "security.capability", CAP_NET_RAW)
    case.assert_same()
    with file.open("r+b") as opened:
        opened.write(b"anything")
    assert "security.capability" not in os.listxattr(file)
    case.assert_same()


def test_a_capability_survives_writes_that_are_replicated_before_it(case: Case, file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(b"anything")
    os.setxattr(file, "security.capability", CAP_NET_RAW)
    case.assert_same()
    assert os.getxattr(case.replica / "file", "security.capability") == CAP_NET_RAW


def test_setuid_stripped_by_a_write(case: Case, file: Path) -> None:
    """An unprivileged writer's write takes the setuid bit off, without a word to anybody."""
    case.source.chmod(0o777)
    os.chown(file, 65534, 65534)
    file.chmod(0o4777)
    case.assert_same()
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "dd", "of=file", "conv=notrunc", "status=none"],
        input=b"new",
        cwd=case.source,
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert not file.stat().st_mode & 0o4000
    case.assert_same()


def test_all_at_once_with_data(case: Case, file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(b"data too")
    file.chmod(0o4755)
    os.setxattr(file, "user.x", b"y")
    os.chown(file, 7, 8)
    file.chmod(0o4755)
    os.setxattr(file, "security.capability", CAP_NET_RAW)
    _acl("-m", "u:99:r")(file)
    _mtime(file)
    case.assert_same()


def test_a_copy_with_all_its_attributes(case: Case, file: Path) -> None:
    os.setxattr(file, "user.x", b"y")
    _mtime(file)
    shutil.copy2(file, file.with_name("copy"))
    case.assert_same()


def test_attributes_of_the_root(case: Case) -> None:
    root = case.pair.source
    mode = root.stat().st_mode & 0o7777
    root.chmod(0o711)
    os.chown(root, 11, 12)
    os.setxattr(root, "user.root", b"yes")
    _mtime(root)
    case.pair.wait()
    there = case.pair.replica.stat()
    assert (there.st_mode & 0o7777, there.st_uid, there.st_gid) == (0o711, 11, 12)
    assert there.st_mtime_ns == root.stat().st_mtime_ns
    assert os.getxattr(case.pair.replica, "user.root") == b"yes"
    root.chmod(mode)
    os.chown(root, 0, 0)

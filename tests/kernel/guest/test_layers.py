"""Writers that are not simply processes on the watched mount: an overlay above it, and namespaces."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Case, on
from tests.support.deadline import eventually
from tests.support.filesystems import run, unmount
from tests.support.helpers import Mapper
from tests.support.operations import content
from tests.support.tracing import Trace
from tests.support.users import shifted

pytestmark = [pytest.mark.native, on("xfs")]

SHIFT = 100_000


class Layers:
    """An overlay whose upper layer is in the tree."""

    def __init__(self, lower: Path, upper: Path, merged: Path) -> None:
        self.lower, self.upper, self.merged = lower, upper, merged


@pytest.fixture
def layers(case: Case, scratch: Path) -> Iterator[Layers]:
    """The working directory is in the tree, too, as a container's is."""
    made = Layers(scratch / "lower", case.source / "upper", scratch / "merged")
    work = case.source / "work"
    for place in (made.lower, made.upper, made.merged, work):
        place.mkdir()
    for name in ("log", "gone", "kept", "marked", "cut", "mapped"):
        (made.lower / name).write_bytes(content(20_000))
    (made.lower / "opaque").mkdir()
    (made.lower / "opaque" / "hidden").write_bytes(b"hidden")
    options = f"lowerdir={made.lower},upperdir={made.upper},workdir={work}"
    run("mount", "-t", "overlay", "overlay", "-o", options, made.merged)
    try:
        yield made
    finally:
        unmount(made.merged)


def test_the_writable_layer_of_a_container_is_replicated(case: Case, layers: Layers) -> None:
    merged, upper = layers.merged, layers.upper
    (merged / "new").write_bytes(content(9000, 3))
    with (merged / "log").open("ab") as file:  # copied up by a write
        file.write(b"appended")
    (merged / "gone").unlink()  # a whiteout
    (merged / "directory").mkdir()
    (merged / "new").rename(merged / "directory" / "renamed")
    (merged / "kept").rename(merged / "directory" / "moved")
    case.assert_same()
    with (merged / "directory" / "renamed").open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"over", 5000)
    os.setxattr(merged / "marked", "user.note", b"copied up for this")
    os.close(os.open(merged / "cut", os.O_WRONLY | os.O_TRUNC))
    (merged / "opaque" / "hidden").unlink()
    (merged / "opaque").rmdir()
    (merged / "opaque").mkdir(mode=0o700)
    with Mapper(merged / "mapped") as mapper:
        mapper.map(0, 20_000)
        mapper.store(12_345, 100, 7)
        case.assert_same()
        mapper.store(1234, 100, 8)
        case.assert_same()
    assert stat.S_ISCHR((upper / "gone").lstat().st_mode)
    assert os.getxattr(upper / "opaque", "trusted.overlay.opaque") == b"y"
    assert (upper / "mapped").read_bytes()[1234:1334] == bytes([8]) * 100
    assert (upper / "cut").stat().st_size == 0


def test_a_write_through_an_overlay_is_shown_once(case: Case, layers: Layers, trace: Trace) -> None:
    (layers.merged / "file").touch()
    trace.catch_up()
    wanted = [(100 * number, 10 + number) for number in range(50)]
    with (layers.merged / "file").open("r+b", buffering=0) as file:
        for offset, length in wanted:
            os.pwrite(file.fileno(), bytes(length), offset)
    trace.catch_up()
    shown = [one for one in trace.records(f"{case.name}/upper/file") if one["kind"] == "write"]
    assert [(one["offset"], one["length"]) for one in shown] == wanted
    assert {one["pid"] for one in shown} == {os.getpid()}
    assert {one["process"] for one in shown} == {Path("/proc/self/comm").read_text().strip()}
    case.assert_same()


def test_a_writer_in_namespaces_of_its_own_is_replicated_and_shown_with_its_outer_number(
    case: Case, scratch: Path, trace: Trace
) -> None:
    """It is root and the first process where it lives, and sees the tree elsewhere."""
    point = scratch / "bound"
    point.mkdir()
    script = """
        mount --bind "$0" "$1"
        cd "$1"
        printf '%s' $$ > number
        mkdir directory
        mv number directory/number
        chmod 600 directory/number
        exec cat > last
    """
    command = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]
    with subprocess.Popen([*command, "sh", "-euc", script, case.source, point], stdin=subprocess.PIPE) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        at_end = case.source / "last"
        eventually(lambda: at_end.exists() or process.poll() is not None, 30, "the writer is at its end")
        assert process.poll() is None
        inner = int(children.read_text())
        case.assert_same()
        assert process.stdin is not None
        process.stdin.write(b"last words")
        process.stdin.close()
    assert process.returncode == 0
    assert (case.source / "directory" / "number").read_bytes() == b"1"
    case.assert_same()
    trace.catch_up()
    shown = [one for one in trace.records(f"{case.name}/last") if one["kind"] == "write"]
    assert [(one["length"], one["pid"], one["process"]) for one in shown] == [(10, inner, "cat")]


def test_owners_that_a_mount_shifts_are_replicated_as_they_are_on_disk(case: Case, scratch: Path) -> None:
    point = scratch / "shifted"
    point.mkdir()
    with shifted(case.source, point, SHIFT):
        script = "echo written > file; mkdir directory; ln file directory/link; chmod 640 file; touch -d @1 directory"
        user = ["setpriv", f"--reuid={SHIFT}", f"--regid={SHIFT}", "--clear-groups"]
        subprocess.run([*user, "sh", "-euc", script], cwd=point, check=True)
        os.chown(point / "directory", SHIFT + 7, SHIFT + 8)
    made = (case.source / "directory").stat()
    assert ((case.source / "file").stat().st_uid, made.st_uid, made.st_gid) == (0, 7, 8)
    case.assert_same()

"""The table of write paths: whatever changes bytes here changes them there, and only what was touched travels."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.conftest import Case, Stage, on
from tests.support.filesystems import FILESYSTEMS
from tests.support.helpers import Mapper
from tests.support.operations import FOLIO, MIB, Operation, Scene, Unsupported, content, operations, prepare, touched
from tests.support.oracle import names
from tests.support.pair import Pair, rsyncfs

pytestmark = [pytest.mark.native, on(*FILESYSTEMS, "ext4-to-xfs")]

FACTS = 8 * 1024
"""What the facts of one step may cost beside its bytes: those of two files and their directory, in a few epochs."""


class Meter:
    """What a step costs: bytes on the wire, and rescans, which must not happen."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._bytes, self._resyncs = pair.spent()

    def check(self, allowed: int) -> None:
        """Judge the step that is over and begin the next."""
        sent, resyncs = self._pair.spent()
        assert resyncs == self._resyncs, f"{resyncs - self._resyncs} rescans"
        used, self._bytes = sent - self._bytes, sent
        assert used <= allowed + FACTS, f"{used} bytes on the wire; {allowed} were touched"


def test_pages_dirty_before_the_start(stage: Stage) -> None:
    """A page that is dirty when the programs attach faults no more: only a flush before the scan makes it seen."""
    pair = stage.prepare()
    file = pair.source / "mapped"
    file.write_bytes(content(4 * MIB))
    try:
        with Mapper(file) as mapper:
            mapper.map(0, 4 * MIB)
            mapper.store(MIB, 10, 1)
            mapper.write(2 * MIB, 10, 1)
            mapper.store(2 * MIB + 10, 10, 1)
            pair.start().assert_same()
            meter = Meter(pair)
            mapper.store(MIB, 10, 2)
            mapper.store(2 * MIB + 10, 10, 2)
            if stage.fstype == "tmpfs":
                os.utime(file)  # the store is invisible there, which other tests hold; the write() below is not
                mapper.write(MIB, 10, 3)
                mapper.write(2 * MIB + 10, 10, 3)
            pair.assert_same()
            meter.check(2 * FOLIO)
            mapper.write(3 * MIB, 10, 2)
            pair.assert_same()
            meter.check(touched((3 * MIB, 10)) + FOLIO)
        file.unlink()
        pair.assert_same()
    except BaseException:
        stage.drop()
        raise


@pytest.mark.parametrize("row", [row for row in operations if not row.mapped], ids=lambda row: row.name)
def test_write_path(case: Case, row: Operation, record_property: Callable[[str, object], None]) -> None:
    """What this kernel refuses to do on this filesystem is told as such, and must have changed nothing."""
    scene = prepare(case.source, row.size)
    case.assert_same()
    meter = Meter(case.pair)
    before = _sizes_and_times(case)
    try:
        _walk(case, row, scene, meter)
    except Unsupported as refusal:
        record_property("refusal", str(refusal))
        assert _sizes_and_times(case) == before
        case.assert_same()
        meter.check(0)


def _sizes_and_times(case: Case) -> dict[bytes, tuple[int, int]]:
    return {path: (info.st_size, info.st_mtime_ns) for path, info in names(case.source).items()}


def _walk(case: Case, row: Operation, scene: Scene, meter: Meter) -> None:
    for number, allowed in enumerate(row.run(scene)):
        case.assert_same(holes=row.holes)
        try:
            meter.check(allowed)
        except AssertionError as error:
            raise AssertionError(f"step {number}: {error}") from None
    case.assert_same(holes=row.holes)


@pytest.mark.parametrize("row", [row for row in operations if row.mapped], ids=lambda row: row.name)
def test_stores_through_a_mapping(case: Case, row: Operation) -> None:
    """On tmpfs nothing in the kernel shows them; then both commands say so, and a later write() brings the file."""
    scene = prepare(case.source, row.size)
    case.assert_same()
    if case.fstype != "tmpfs":
        _walk(case, row, scene, Meter(case.pair))
        return
    list(row.steps(scene))
    case.pair.wait()
    assert case.pair.sender is not None
    for said in (rsyncfs("doctor", "--json").stdout, case.pair.sender.text(100_000)):
        assert any("tmpfs" in line and "mapping" in line for line in said.splitlines()), said
    scene.file.write_bytes(content(row.size, 3))
    case.assert_same()

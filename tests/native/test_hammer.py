"""Places that are written millions of times: the kernel side leaves most of it out, and the replica is the same."""

from __future__ import annotations

import pytest

from tests.conftest import Case, on
from tests.support.helpers import call

pytestmark = [pytest.mark.native, on("ext4", "xfs")]

SECONDS = 4
PATIENCE = 60.0


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("way", ["places", "growing"])
def test_what_was_written_last_is_on_the_replica(case: Case, way: str, threads: int) -> None:
    before = case.pair.status()
    writes = int(call("hammer", case.source / "file", way, SECONDS, threads))
    case.assert_same(PATIENCE)
    after = case.pair.status()
    told, left_out = (after[name] - before[name] for name in ("events", "events_suppressed"))
    print(f"{case.fstype}: {writes} writes by {threads} threads, {told} records, {left_out} left out")
    assert left_out > writes / 2, "the places that are written again and again are not told each time"
    assert not any(after["losses"].values()), after["losses"]

"""A ring of one page, and then a map that is too small as well: nothing is missing, and only what it takes is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.overflow import SIZES, Storm, overflow


@pytest.mark.parametrize("tier", [2, 3])
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_what_does_not_fit_is_made_up_for_by_no_more_than_it_takes(scratch: Path, fstype: str, tier: int) -> None:
    found = overflow(fstype, scratch, Storm(files=300, writes=40_000, quiet=300), SIZES[tier])
    assert found["differences"] == []
    assert found["tier"] == tier, found
    assert found["quiet_files_read"] == 0

"""Some crashes of each kind under a workload of everything; `make soak` makes hundreds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.soak.crashes import Crashes, campaign

pytestmark = [pytest.mark.native, pytest.mark.slow]


@pytest.mark.parametrize("where", ["ext4", "xfs"])
def test_whatever_dies_nothing_acknowledged_is_lost_and_both_sides_end_identical(where: str, scratch: Path) -> None:
    crashes = Crashes(sender=6, receiver=6, both=3, cut=10, seed=11, leg=13)
    result = campaign(crashes, where, scratch)
    assert result.problems == []
    assert result.crashes == Counter(sender=6, receiver=6, both=3, cut=10)
    assert result.comparisons == 2
    assert result.acknowledgements > 5
    assert result.operations > 500

"""Some crashes of each kind under a workload of everything; `make soak` makes hundreds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.soak.crashes import POWER, Crashes, campaign
from tests.soak.power import power_cuts

pytestmark = [pytest.mark.native, pytest.mark.slow]


@pytest.mark.parametrize("where", ["ext4", "xfs"])
def test_whatever_dies_nothing_acknowledged_is_lost_and_both_sides_end_identical(where: str, scratch: Path) -> None:
    crashes = Crashes(sender=6, receiver=6, both=3, cut=10, seed=11, leg=13, rescans=0)
    result = campaign(crashes, where, scratch)
    assert result.problems == []
    assert result.crashes == Counter(sender=6, receiver=6, both=3, cut=10)
    assert result.comparisons == 2
    assert result.acknowledgements > 5
    assert result.operations > 500


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_what_was_acknowledged_survives_power_cuts_of_the_receiver(fstype: str, scratch: Path) -> None:
    result = power_cuts(fstype, 4, 1, scratch)
    assert result.problems == []
    assert result.crashes[POWER] == 4
    assert result.acknowledgements > 0
    assert result.operations > 100

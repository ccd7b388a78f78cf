"""Some power cuts of the receiver's machine; `python -m tests.kernel.power` makes more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.machine import kernels
from tests.kernel.power import MOUNT, all_cuts, table
from tests.soak.crashes import POWER

pytestmark = pytest.mark.timeout(0)  # each wait has a limit of its own
CUTS = 2


def test_what_was_acknowledged_survives_its_machine(tmp_path: Path) -> None:
    results = all_cuts(list(MOUNT), kernels()[-2], CUTS, 1, tmp_path)
    assert [result.problems for result, _ in results] == [[] for _ in MOUNT], table(results)
    for result, _ in results:
        assert (result.crashes[POWER], result.comparisons) == (CUTS, 1), table(results)
        assert result.acknowledgements > CUTS
        assert result.operations > 20

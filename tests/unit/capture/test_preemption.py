"""What kernels say of themselves, as seen on Debian 12 and 13."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.capture.preemption import preemptible


@pytest.mark.parametrize(
    ("version", "model", "expected"),
    [
        ("#1 SMP Debian 4.19.67-2 (2019-08-28)", "", False),
        ("#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2", "none (voluntary) full\n", False),
        ("#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2", "(none) voluntary full\n", False),
        ("#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2", "none voluntary (full)\n", True),
        ("#1 SMP PREEMPT_DYNAMIC Debian 7.3.4-1", "full (lazy)\n", True),
        ("#1 SMP PREEMPT_DYNAMIC Debian 7.3.4-1", "", True),
        ("#1 SMP PREEMPT_LAZY", "", True),
        ("#1 SMP PREEMPT_RT Debian 6.12.9-1", "", True),
        ("#1 SMP PREEMPT", "", True),
    ],
)
def test_a_kernel_that_interrupts_itself_is_known(tmp_path: Path, version: str, model: str, expected: bool) -> None:
    place = tmp_path / "preempt"
    if model:
        place.write_text(model)
    assert preemptible(version, place) is expected


def test_this_kernel_is_asked() -> None:
    assert preemptible() in (True, False)

"""What kernels say of themselves, as seen on Debian 12 and 13."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.capture.btf import Btf
from replicator.capture.preemption import preemptible, tracepoints_preemptible
from tests.unit.capture.made_btf import TYPEDEF, kernel


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


def test_programs_at_tracepoints_are_preempted_where_those_are_guarded_by_srcu() -> None:
    older, newer = kernel(), kernel()
    older.add(TYPEDEF, "class_preempt_notrace_t", 3)
    newer.add(TYPEDEF, "class_srcu_fast_notrace_t", 3)
    assert not tracepoints_preemptible(Btf(older.blob()))
    assert tracepoints_preemptible(Btf(newer.blob()))


def test_this_kernel_is_asked() -> None:
    assert preemptible() in (True, False)

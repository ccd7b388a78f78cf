"""What the soak tells: a table for people, JSON for docs/reliability.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.soak.crashes import KINDS, POWER, Result

COLUMNS = (*KINDS, POWER)


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of them lie; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


def summary(result: Result) -> dict[str, Any]:
    """One campaign, for JSON; times in seconds."""
    return {
        "filesystem": result.where,
        "seed": result.seed,
        "crashes": {kind: result.crashes[kind] for kind in COLUMNS},
        "comparisons": result.comparisons,
        "records": result.records,
        "acknowledgements": result.acknowledgements,
        "operations": result.operations,
        "walks": dict(result.resyncs),
        "sender_ready": {"p50": quantile(result.ready["send"], 0.5), "max": quantile(result.ready["send"], 1.0)},
        "receiver_ready": {
            "p50": quantile(result.ready["receive"], 0.5),
            "max": quantile(result.ready["receive"], 1.0),
        },
        "wait": {"p50": quantile(result.waits, 0.5), "p99": quantile(result.waits, 0.99)},
        "seconds": result.seconds,
        "finished": not result.unfinished,
        "problems": result.problems,
    }


def table(results: Sequence[Result]) -> str:
    """A row for each campaign."""
    head = f"{'filesystem':<14}" + "".join(f"{kind:>9}" for kind in COLUMNS)
    lines = [f"{head}{'compared':>9}{'acks':>7}{'operations':>11}{'walks':>6}{'ready p50':>10}{'seconds':>8}  verdict"]
    for result in results:
        verdict = "BROKEN" if result.problems else "unfinished" if result.unfinished else "identical"
        lines.append(
            f"{result.where:<14}"
            + "".join(f"{result.crashes[kind]:>9}" for kind in COLUMNS)
            + f"{result.comparisons:>9}{result.acknowledgements:>7}{result.operations:>11}{result.resyncs.total():>6}"
            + f"{quantile(result.ready['send'], 0.5):>9.2f}s{result.seconds:>8.0f}  {verdict}"
        )
    return "\n".join(lines)


def repeat(result: Result) -> str:
    """The command that runs the same campaign."""
    counts = " ".join(f"--{kind} {result.asked.get(kind, 0)}" for kind in COLUMNS)
    return f"python -m tests.soak --only {result.where} --seed {result.seed} {counts}"

"""What the sender's gauges follow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from prometheus_client import generate_latest

from replicator.gauges import Gauges
from replicator.model import FileId
from replicator.observe.metrics import SenderMetrics
from replicator.source.outbox import Outbox
from replicator.tree.exclude import Exclude

ROOT, FILE = FileId(0, 0, 2, 1), FileId(0, 0, 12, 1)
LINE = "\nrsyncfs_unsettled_inodes "


def test_unsettled_inodes_are_counted_at_each_scrape() -> None:
    metrics, outbox = SenderMetrics(), Outbox(ROOT, Exclude([]))
    hooks: Any = SimpleNamespace(state=lambda: {"adopted": False})
    unused: Any = SimpleNamespace()
    Gauges(metrics, outbox, unused, hooks, unused, unused, unused)

    def shown() -> str:
        return generate_latest(metrics.registry).decode().partition(LINE)[2].partition("\n")[0]

    assert shown() == "0.0"
    outbox.pace.unsettled(FILE, 5)
    assert shown() == "1.0"
    assert outbox.pace.quiet(5, 10) == [FILE]
    assert shown() == "0.0"

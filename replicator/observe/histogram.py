"""A histogram of durations that is cheap to fill: one bisection a value, or one numpy call a batch.

Takes seconds, gives Prometheus buckets, and quantiles for people (status, demo). Within it are many narrow buckets,
of which the exported ones are a subset, so a quantile is off by at most 5 %. Values may be added in one thread while
another collects. It does not promise to remember single values, except the largest.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

EXPORTED: Sequence[float] = (
    *(0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 3600.0),
)
"""Upper bounds of the exported buckets, seconds."""

_NARROW = sorted({*EXPORTED, *(1e-6 * 1.05**power for power in range(452))})
_EXPORTED_AT = np.searchsorted(np.array(_NARROW), np.array(EXPORTED))


@dataclass(frozen=True)
class Snapshot:
    """The state of a histogram at one time. Subtracting an earlier one leaves what came between."""

    counts: npt.NDArray[np.int64]
    """Values in each narrow bucket (int64, one more than there are bounds; the last one is open)."""
    total: float
    """The sum of all values, seconds."""
    largest: float
    """Seconds; after a subtraction the upper bound of the highest bucket that was hit. 0 if there are no values."""

    @property
    def count(self) -> int:
        """How many values."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """The value, in seconds, below which `share` (0 to 1) of all values lie; 0 if there are none."""
        count = self.count
        if count == 0:
            return 0.0
        rank = min(max(share, 0.0), 1.0) * count
        cumulated = np.cumsum(self.counts)
        at = int(np.searchsorted(cumulated, max(rank, 1.0)))
        if at >= len(_NARROW):
            return self.largest
        return min(_NARROW[at], self.largest)

    def __sub__(self, earlier: Snapshot) -> Snapshot:
        counts = self.counts - earlier.counts
        hit = np.flatnonzero(counts)
        largest = 0.0
        if len(hit):
            largest = min(_NARROW[hit[-1]], self.largest) if hit[-1] < len(_NARROW) else self.largest
        return Snapshot(counts, self.total - earlier.total, largest)


class Histogram(Collector):
    """A Prometheus histogram of seconds without labels, registered at once."""

    def __init__(self, name: str, help_text: str, registry: CollectorRegistry) -> None:
        self.name = name
        self._help = help_text
        self._lock = threading.Lock()
        self._counts = np.zeros(len(_NARROW) + 1, dtype=np.int64)
        self._total = 0.0
        self._largest = 0.0
        registry.register(self)

    def observe(self, seconds: float) -> None:
        """Add one value. Below zero (a clock read on another CPU a moment earlier) counts as zero."""
        seconds = max(seconds, 0.0)
        with self._lock:
            self._counts[bisect_left(_NARROW, seconds)] += 1
            self._total += seconds
            self._largest = max(self._largest, seconds)

    def observe_many(self, seconds: npt.ArrayLike) -> None:
        """Add a batch: anything numpy makes a one-dimensional array of, seconds."""
        values = np.maximum(np.asarray(seconds, dtype=np.float64).ravel(), 0.0)
        if not len(values):
            return
        hits = np.bincount(np.searchsorted(_NARROW_ARRAY, values), minlength=len(_NARROW) + 1)
        with self._lock:
            self._counts += hits
            self._total += float(values.sum())
            self._largest = max(self._largest, float(values.max()))

    def snapshot(self) -> Snapshot:
        """The state now, unchanged by what comes later."""
        with self._lock:
            return Snapshot(self._counts.copy(), self._total, self._largest)

    def describe(self) -> Iterable[Metric]:
        """The name and help, for the registry's check against duplicates."""
        yield HistogramMetricFamily(self.name, self._help)

    def collect(self) -> Iterable[Metric]:
        """The exported buckets, cumulative, as Prometheus wants them."""
        now = self.snapshot()
        cumulated = np.cumsum(now.counts)
        buckets = [(str(bound), float(cumulated[at])) for bound, at in zip(EXPORTED, _EXPORTED_AT, strict=True)]
        buckets.append(("+Inf", float(cumulated[-1])))
        yield HistogramMetricFamily(self.name, self._help, buckets=buckets, sum_value=now.total)


_NARROW_ARRAY = np.array(_NARROW)

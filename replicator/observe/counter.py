"""Counters, with at most one label, whose series exist from the start, and that can follow totals kept elsewhere.

Takes increments or totals, gives Prometheus counters. Totals of a sensor or a connection start again at zero when it
is made anew: `follow` adds only what is new, so that the exported counter never goes back while the process lives.
Values may be added in one thread while another collects.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class Counter(Collector):
    """A counter without labels, registered at once."""

    def __init__(self, name: str, help_text: str, registry: CollectorRegistry) -> None:
        self.name = name
        self._help = help_text
        self._lock = threading.Lock()
        self._value = 0.0
        self._followed = 0.0
        registry.register(self)

    @property
    def value(self) -> float:
        """The count so far."""
        return self._value

    def add(self, amount: float = 1) -> None:
        """Count `amount` more (not negative: ValueError)."""
        if amount < 0:
            raise ValueError(f"{self.name} cannot go back by {-amount}")
        with self._lock:
            self._value += amount

    def follow(self, total: float) -> None:
        """Take over a total that is kept elsewhere; one below the last means that it was started again."""
        with self._lock:
            self._value += _news(total, self._followed)
            self._followed = total

    def describe(self) -> Iterable[Metric]:
        """The name and help, for the registry's check against duplicates."""
        yield CounterMetricFamily(self.name, self._help)

    def collect(self) -> Iterable[Metric]:
        """The one series."""
        yield CounterMetricFamily(self.name, self._help, value=self._value)


class LabelledCounter(Collector):
    """Counters that differ in one label, registered at once, those of `values` from the start at zero."""

    def __init__(
        self, name: str, help_text: str, registry: CollectorRegistry, *, label: str, values: Iterable[str]
    ) -> None:
        self.name = name
        self._help = help_text
        self._label = label
        self._lock = threading.Lock()
        self._values = dict.fromkeys(values, 0.0)
        self._followed: dict[str, float] = {}
        registry.register(self)

    def __getitem__(self, value: str) -> float:
        """The count so far of one label value; 0 if it never occurred."""
        return self._values.get(value, 0.0)

    def total(self) -> float:
        """The count over all label values."""
        with self._lock:
            return sum(self._values.values())

    def add(self, value: str, amount: float = 1) -> None:
        """Count `amount` more (not negative: ValueError) of a label value, which may be new."""
        if amount < 0:
            raise ValueError(f"{self.name} cannot go back by {-amount}")
        with self._lock:
            self._values[value] = self._values.get(value, 0.0) + amount

    def follow(self, totals: Mapping[str, float]) -> None:
        """Take over totals kept elsewhere, by label value; one below the last means that it was started again."""
        with self._lock:
            for value, total in totals.items():
                news = _news(total, self._followed.get(value, 0.0))
                self._values[value] = self._values.get(value, 0.0) + news
                self._followed[value] = total

    def describe(self) -> Iterable[Metric]:
        """The name and help, for the registry's check against duplicates."""
        yield CounterMetricFamily(self.name, self._help, labels=[self._label])

    def collect(self) -> Iterable[Metric]:
        """One series a label value."""
        with self._lock:
            values = dict(self._values)
        family = CounterMetricFamily(self.name, self._help, labels=[self._label])
        for value, count in values.items():
            family.add_metric([value], count)
        yield family


def _news(total: float, last: float) -> float:
    return total - last if total >= last else max(total, 0.0)

"""Durations come out of the histogram as they went in, for Prometheus and for people."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from replicator.observe.histogram import EXPORTED, Histogram

SECONDS = st.lists(st.floats(min_value=0, max_value=7200, allow_nan=False), max_size=60)


def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    text = generate_latest(registry).decode()
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@given(SECONDS)
def test_prometheus_sees_how_many_values_lie_below_each_bound(values: list[float]) -> None:
    registry = CollectorRegistry()
    histogram = Histogram("lag_seconds", "Help.", registry)
    for value in values:
        histogram.observe(value)
    seen = samples(registry)
    for bound in EXPORTED:
        assert seen["lag_seconds_bucket", str(bound)] == sum(value <= bound for value in values)
    assert seen["lag_seconds_bucket", "+Inf"] == seen["lag_seconds_count", ""] == len(values)
    assert seen["lag_seconds_sum", ""] == pytest.approx(sum(values))


@given(SECONDS)
def test_a_batch_counts_as_its_values_one_by_one(values: list[float]) -> None:
    one, many = CollectorRegistry(), CollectorRegistry()
    single, batch = Histogram("lag_seconds", "Help.", one), Histogram("lag_seconds", "Help.", many)
    for value in values:
        single.observe(value)
    batch.observe_many(values)
    left, right = samples(one), samples(many)
    assert left.pop(("lag_seconds_sum", "")) == pytest.approx(right.pop(("lag_seconds_sum", "")))
    assert left == right
    assert single.snapshot().largest == batch.snapshot().largest


@given(st.lists(st.floats(min_value=1e-5, max_value=3000), min_size=1, max_size=60), st.floats(0.01, 1))
def test_a_quantile_is_right_within_five_percent(values: list[float], share: float) -> None:
    histogram = Histogram("lag_seconds", "Help.", CollectorRegistry())
    histogram.observe_many(values)
    truth = sorted(values)[max(int(np.ceil(share * len(values) - 1e-9)), 1) - 1]
    assert histogram.snapshot().quantile(share) == pytest.approx(truth, rel=0.051)


@pytest.mark.parametrize("bound", EXPORTED)
def test_a_value_on_a_bound_lies_below_it(bound: float) -> None:
    registry = CollectorRegistry()
    histogram = Histogram("lag_seconds", "Help.", registry)
    histogram.observe(bound)
    histogram.observe_many([bound])
    assert samples(registry)["lag_seconds_bucket", str(bound)] == 2


def test_the_largest_value_is_exact() -> None:
    histogram = Histogram("lag_seconds", "Help.", CollectorRegistry())
    histogram.observe_many(np.array([0.001, 0.0301, 0.002]))
    now = histogram.snapshot()
    assert now.largest == 0.0301
    assert now.quantile(1) == 0.0301
    assert now.count == 3


def test_values_beyond_the_last_bound_are_not_lost() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("lag_seconds", "Help.", registry)
    histogram.observe(90_000)
    assert samples(registry)["lag_seconds_bucket", "3600.0"] == 0
    assert samples(registry)["lag_seconds_bucket", "+Inf"] == 1
    assert histogram.snapshot().quantile(0.5) == 90_000


def test_a_clock_that_lies_a_little_counts_as_no_lag() -> None:
    histogram = Histogram("lag_seconds", "Help.", CollectorRegistry())
    histogram.observe(-1e-6)
    histogram.observe_many([-1e-6])
    now = histogram.snapshot()
    assert (now.count, now.total, now.largest) == (2, 0, 0)


def test_the_difference_of_two_snapshots_is_what_came_between() -> None:
    histogram = Histogram("lag_seconds", "Help.", CollectorRegistry())
    histogram.observe_many([5.0] * 100)
    before = histogram.snapshot()
    histogram.observe_many([0.002] * 10)
    between = histogram.snapshot() - before
    assert between.count == 10
    assert between.quantile(0.99) == pytest.approx(0.002, rel=0.05)
    assert between.largest == pytest.approx(0.002, rel=0.05)
    assert between.total == pytest.approx(0.02)


def test_nothing_observed_is_zero_everywhere() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("lag_seconds", "Help.", registry)
    histogram.observe_many([])
    assert histogram.snapshot().quantile(0.99) == 0
    assert (histogram.snapshot() - histogram.snapshot()).largest == 0
    assert set(samples(registry).values()) == {0}

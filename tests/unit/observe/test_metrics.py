"""What a scrape shows: every series from the start, and counters that never go back."""

import math
import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from replicator import __version__, observe
from replicator.observe.metrics import ReceiverMetrics, SenderMetrics

PACKAGE = Path(observe.__file__).parents[1]


def scrape(metrics: SenderMetrics | ReceiverMetrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
    }


def value(metrics: SenderMetrics | ReceiverMetrics, name: str, **labels: str) -> float:
    return scrape(metrics)[name, frozenset(labels.items())]


PROMISED = [
    ("rsyncfs_lag_applied_seconds_bucket", {"le": "0.0005"}),
    ("rsyncfs_lag_applied_seconds_bucket", {"le": "60.0"}),
    ("rsyncfs_lag_durable_seconds_count", {}),
    ("rsyncfs_oldest_unreplicated_seconds", {}),
    ("rsyncfs_dirty_bytes", {}),
    ("rsyncfs_dirty_files", {}),
    ("rsyncfs_events_total", {"kind": "write"}),
    ("rsyncfs_events_total", {"kind": "name"}),
    ("rsyncfs_events_suppressed_total", {}),
    ("rsyncfs_events_dropped_total", {"cause": "ring_full"}),
    ("rsyncfs_wire_bytes_total", {"direction": "sent"}),
    ("rsyncfs_wire_bytes_total", {"direction": "received"}),
    ("rsyncfs_connected", {}),
    ("rsyncfs_resyncs_total", {"cause": "start"}),
]


@pytest.mark.parametrize(("name", "labels"), PROMISED, ids=lambda part: str(part))
def test_the_sender_shows_each_promised_series_at_zero_before_anything_happened(
    name: str, labels: dict[str, str]
) -> None:
    assert value(SenderMetrics(), name, **labels) == 0


@pytest.mark.parametrize("name", ["rsyncfs_connected", "rsyncfs_applied_bytes_total", "rsyncfs_limbo_files"])
def test_the_receiver_shows_its_series_at_zero(name: str) -> None:
    assert value(ReceiverMetrics(), name) == 0


@pytest.mark.parametrize(("metrics", "side"), [(SenderMetrics, "sender"), (ReceiverMetrics, "receiver")])
def test_each_end_tells_its_version(metrics: type[SenderMetrics] | type[ReceiverMetrics], side: str) -> None:
    assert value(metrics(), "rsyncfs_build_info", version=__version__, side=side) == 1


def test_two_senders_in_one_process_do_not_share_numbers() -> None:
    one, other = SenderMetrics(), SenderMetrics()
    one.data_bytes.add(10)
    assert value(one, "rsyncfs_data_bytes_total") == 10
    assert value(other, "rsyncfs_data_bytes_total") == 0


def test_the_age_of_the_oldest_change_is_asked_for_at_each_scrape() -> None:
    metrics = SenderMetrics()
    ages = iter([1.5, 2.5])
    metrics.oldest_unreplicated.set_function(lambda: next(ages))
    assert value(metrics, "rsyncfs_oldest_unreplicated_seconds") == 1.5
    assert value(metrics, "rsyncfs_oldest_unreplicated_seconds") == 2.5


def test_a_sensor_that_is_attached_again_does_not_turn_its_losses_back() -> None:
    metrics = SenderMetrics()
    metrics.events_dropped.follow({"ring_full": 7, "recursion": 1})
    metrics.events_dropped.follow({"ring_full": 9, "recursion": 1})
    metrics.events_dropped.follow({"ring_full": 2})
    assert value(metrics, "rsyncfs_events_dropped_total", cause="ring_full") == 11
    assert value(metrics, "rsyncfs_events_dropped_total", cause="recursion") == 1
    assert metrics.events_dropped.total() == 12


def test_a_cause_nobody_thought_of_gets_its_series() -> None:
    metrics = SenderMetrics()
    metrics.events_dropped.add("cosmic_ray", 3)
    assert value(metrics, "rsyncfs_events_dropped_total", cause="cosmic_ray") == 3
    assert metrics.events_dropped["cosmic_ray"] == 3
    assert metrics.events_dropped["unheard_of"] == 0


def test_retransmissions_of_one_connection_after_another_add_up() -> None:
    metrics = SenderMetrics()
    for total in (4, 6, 1, 1):
        metrics.tcp_retransmits.follow(total)
    assert value(metrics, "rsyncfs_tcp_retransmits_total") == metrics.tcp_retransmits.value == 7


def test_no_counter_goes_back() -> None:
    metrics = SenderMetrics()
    with pytest.raises(ValueError, match="rsyncfs_data_bytes cannot go back"):
        metrics.data_bytes.add(-1)
    with pytest.raises(ValueError, match="rsyncfs_wire_bytes cannot go back"):
        metrics.wire_bytes.add("sent", -1)
    assert value(metrics, "rsyncfs_wire_bytes_total", direction="sent") == 0


def test_without_a_connection_there_is_no_round_trip_time() -> None:
    assert math.isnan(value(SenderMetrics(), "rsyncfs_tcp_rtt_seconds"))


@pytest.mark.parametrize("metrics", [SenderMetrics, ReceiverMetrics])
def test_every_metric_of_ours_has_help_that_is_a_sentence(
    metrics: type[SenderMetrics] | type[ReceiverMetrics],
) -> None:
    families = [family for family in metrics().registry.collect() if family.name.startswith("rsyncfs_")]
    assert len(families) > 10
    assert [
        family.name for family in families if not (family.documentation and family.documentation[-1] in ".?!s")
    ] == []


@pytest.mark.parametrize("metrics", [SenderMetrics, ReceiverMetrics])
def test_every_metric_is_fed_by_the_process_that_exports_it(
    metrics: type[SenderMetrics] | type[ReceiverMetrics],
) -> None:
    made = metrics()
    own = {name for name in vars(made) if not name.startswith("_")} - {"registry", "build"}
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "metrics.py")
    fed = set(re.findall(r"metrics\.(\w+)", code))
    assert own - fed == set()

"""The dashboard and the alerts: they ask for metrics that exist, and a real Prometheus has the answers.

Its programs are those of the distribution, unpacked by scripts/bootstrap, or installed ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from replicator.link.address import Address, parse_address
from replicator.observe.http import MetricsServer
from replicator.observe.metrics import ReceiverMetrics, SenderMetrics
from tests.support.confined import PROJECT, confined
from tests.support.deadline import eventually
from tests.support.pair import free_port

PROMETHEUS = PROJECT / "deploy/prometheus"
WORDS = frozenset(
    [
        "sum",
        "by",
        "on",
        "and",
        "rate",
        "increase",
        "time",
        "histogram_quantile",
        "instance",
        "cause",
        "kind",
        "le",
        "side",
        "job",
    ]
)
"""Words of PromQL and names of labels that the expressions use."""
OTHERS = frozenset(["up", "process_cpu_seconds_total", "process_resident_memory_bytes"])


def program(name: str) -> str:
    """One of Prometheus' programs."""
    found = shutil.which(name, path=f"{PROJECT}/build/tools/usr/bin:{os.environ['PATH']}")
    assert found is not None, f"{name} is missing: run scripts/bootstrap test"
    return found


# Expressions


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((PROJECT / "grafana/rsyncfs.json").read_text())
    return board


def panel_expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]


def alerts() -> dict[str, str]:
    groups = yaml.safe_load((PROMETHEUS / "rsyncfs.rules.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def declared() -> frozenset[str]:
    """Every series name that the two ends export, taken from what they serve before anything has happened."""
    return frozenset(
        sample.name
        for metrics in (SenderMetrics(), ReceiverMetrics())
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
    )


def names(expression: str) -> set[str]:
    """The metrics that an expression asks for: its words, but for strings, durations and those of PromQL."""
    bare = re.sub(r'"[^"]*"|\[[^]]*\]', "", expression)
    return set(re.findall(r"[A-Za-z_:][A-Za-z0-9_:]*", bare)) - WORDS


@pytest.mark.parametrize("expression", [*panel_expressions(), *alerts().values()])
def test_the_expression_asks_only_for_metrics_that_exist(expression: str) -> None:
    asked = names(expression)
    assert asked
    assert asked - OTHERS <= declared()


def test_the_dashboard_asks_its_variables_of_metrics_that_exist() -> None:
    queries = [entry["definition"] for entry in dashboard()["templating"]["list"] if entry["type"] == "query"]
    assert len(queries) == 2
    for query in queries:
        asked = re.fullmatch(r"label_values\((\w+), instance\)", query)
        assert asked is not None
        assert asked[1] in declared()


def test_the_dashboard_shows_what_the_operator_needs_first() -> None:
    asked = " ".join(panel_expressions())
    for end in ("applied", "durable"):
        for share in ("0.5", "0.99"):
            assert f"histogram_quantile({share}, sum by (instance, le) (rate(rsyncfs_lag_{end}_seconds_bucket" in asked
    for name in (
        *("rsyncfs_oldest_unreplicated_seconds", "rsyncfs_dirty_bytes", "rsyncfs_dirty_files", "rsyncfs_connected"),
        *("rsyncfs_wire_bytes_total", "rsyncfs_events_total", "rsyncfs_events_dropped_total", "rsyncfs_resyncs_total"),
    ):
        assert name in asked


def test_each_panel_has_a_place_of_its_own_and_says_what_it_shows() -> None:
    taken: set[tuple[int, int]] = set()
    identifiers = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
        identifiers.add(panel["id"])
        assert panel["type"] == "row" or panel["description"]
    assert len(identifiers) == len(dashboard()["panels"])


def test_promtool_accepts_configuration_and_alerts() -> None:
    done = subprocess.run(
        [program("promtool"), "check", "config", str(PROMETHEUS / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts())} rules found" in done.stdout + done.stderr


# A Prometheus that scrapes both ends


@dataclass
class Prometheus:
    """One with the shipped configuration that scrapes two ends."""

    sender_at: str
    receiver_at: str
    port: int

    def api(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def ask(self, expression: str) -> list[Any]:
        """The series that an expression yields now, the dashboard's variables put in as Grafana would."""
        for variable, value in (
            *(("$__rate_interval", "10s"), ("[10m]", "[10s]"), ("[5m]", "[10s]"), ("[1h]", "[10s]")),
            *(("$sender", self.sender_at), ("$receiver", self.receiver_at)),
        ):
            expression = expression.replace(variable, value)
        result: list[Any] = self.api("query", query=expression)["result"]
        return result

    def scraped(self) -> bool:
        """Whether both ends have been scraped a few times, so that rates exist."""
        try:
            return len(self.ask('sum_over_time(up{job="rsyncfs"}[10s]) > 2')) == 2
        except OSError:
            return False


@contextlib.contextmanager
def prometheus(directory: Path, sender_at: str, receiver_at: str) -> Iterator[Prometheus]:
    """A Prometheus that has scraped both ends."""
    text = (PROMETHEUS / "prometheus.yml").read_text()
    for shipped, real in (
        ("127.0.0.1:7411", sender_at),
        ("127.0.0.1:7412", receiver_at),
        ("scrape_interval: 5s", "scrape_interval: 200ms"),
        ("evaluation_interval: 15s", "evaluation_interval: 200ms"),
    ):
        assert text.count(shipped) == 1
        text = text.replace(shipped, real)
    (directory / "prometheus.yml").write_text(text)
    shutil.copy(PROMETHEUS / "rsyncfs.rules.yml", directory)
    port = free_port()
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        made = Prometheus(sender_at, receiver_at, port)
        eventually(made.scraped, 60, "both ends are scraped")
        yield made
    finally:
        process.kill()
        process.wait()


def test_a_dashboard_over_both_ends_shows_what_was_written(scratch: Path) -> None:
    source, replica, states = (scratch / name for name in ("source", "replica", "states"))
    for directory in (source, replica, states):
        directory.mkdir()
    at, sender_at, receiver_at = (f"127.0.0.1:{free_port()}" for _ in range(3))
    receiving: list[str | Path] = [
        "--root",
        replica,
        "--listen",
        at,
        "--state",
        states / "receive",
        "--metrics",
        receiver_at,
    ]
    sending: list[str | Path] = [source, at, "--state", states / "send", "--metrics", sender_at]
    with (
        confined("receive", scratch / "receive.log", receiving),
        confined("send", scratch / "send.log", sending),
        prometheus(scratch, sender_at, receiver_at) as board,
    ):
        written = 0

        def write_and_ask(expression: str, least: float) -> bool:
            nonlocal written
            (source / f"file{written}").write_bytes(os.urandom(5000))
            written += 1
            (series,) = board.ask(expression)
            return float(series["value"][1]) >= least

        selected = f'{{instance="{sender_at}"}}'
        for expression, least in (
            *(
                (
                    f"histogram_quantile({share}, sum by (le) (rate(rsyncfs_lag_{end}_seconds_bucket{selected}[10s])))",
                    1e-4,
                )
                for end in ("applied", "durable")
                for share in (0.5, 0.99)
            ),
            (f"sum(increase(rsyncfs_events_total{selected}[10s]))", 10),
            (f"rate(rsyncfs_data_bytes_total{selected}[10s])", 5000),
            (f'rate(rsyncfs_wire_bytes_total{{instance="{sender_at}", direction="sent"}}[10s])', 5000),
            (f'rate(rsyncfs_applied_bytes_total{{instance="{receiver_at}"}}[10s])', 5000),
            (f"rsyncfs_connected{selected}", 1),
        ):
            eventually(partial(write_and_ask, expression, least), 30, expression, every=0.05)
        eventually(lambda: board.ask(f"rsyncfs_dirty_files{selected} == 0"), 30)
        assert not board.ask("sum(rsyncfs_events_dropped_total) > 0")
        assert not board.ask("rsyncfs_oldest_unreplicated_seconds > 30")


# What Prometheus makes of every expression


@dataclass
class Ends:
    """Both ends' metrics, served by this process, and a Prometheus over them."""

    sender: SenderMetrics
    receiver: ReceiverMetrics
    receiver_server: MetricsServer
    board: Prometheus


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    sender, receiver = SenderMetrics(), ReceiverMetrics()
    sender_server, receiver_server = (
        MetricsServer(Address("127.0.0.1", 0), end.registry) for end in (sender, receiver)
    )
    with prometheus(
        tmp_path_factory.mktemp("prometheus"), str(sender_server.address), str(receiver_server.address)
    ) as board:
        made = Ends(sender, receiver, receiver_server, board)
        yield made
        sender_server.close()
        made.receiver_server.close()


@pytest.mark.parametrize("expression", panel_expressions())
def test_prometheus_has_an_answer_to_each_panel(ends: Ends, expression: str) -> None:
    eventually(lambda: ends.board.ask(expression), 30, expression)  # a scrape may have taken too long


def test_prometheus_evaluates_every_alert_without_an_error(ends: Ends) -> None:
    def rules() -> list[Any]:
        return [rule for group in ends.board.api("rules")["groups"] for rule in group["rules"]]

    eventually(lambda: all(rule["health"] != "unknown" for rule in rules()), 30)
    assert {rule["name"]: rule.get("lastError", "") for rule in rules()} == dict.fromkeys(alerts(), "")


def test_alerts_keep_quiet_while_all_is_well_and_speak_when_it_is_not(ends: Ends) -> None:
    def speaking() -> set[str]:
        return {name for name, expression in alerts().items() if ends.board.ask(expression)}

    sender, receiver = ends.sender, ends.receiver
    sender.connected.set(1)
    receiver.connected.set(1)
    sender.journal_kept.set(1)
    sender.lag_applied.observe_many([0.001] * 100)
    sender.resyncs.add("start")
    sender.scrub_period.set(3600)
    sender.scrub_ended.set(time.time())
    eventually(lambda: not speaking(), 30)

    sender.connected.set(0)
    receiver.connected.set(0)
    receiver.epoch_open.set(1)
    sender.oldest_unreplicated.set(61)
    sender.held_files.set(1)
    sender.journal_kept.set(0)
    sender.scrub_period.set(3600)
    sender.scrub_ended.set(time.time() - 7300)
    expected, heard = set(alerts()) - {"RsyncfsDown"}, set[str]()

    def heard_all() -> bool:
        nonlocal heard
        sender.lag_applied.observe_many([20] * 1000)  # what counts increases is over after some seconds
        sender.events_dropped.add("ring_full")
        sender.resyncs.add("names_overflow")
        sender.verify_differences.add()
        sender.scrub_findings.add("content")
        heard = speaking()
        return heard == expected

    try:
        eventually(heard_all, 30, every=0.2)
    except AssertionError:
        assert heard == expected
        raise


def test_an_end_that_does_not_answer_is_noticed(ends: Ends) -> None:
    down = alerts()["RsyncfsDown"]
    assert ends.board.ask(down) == []
    ends.receiver_server.close()
    (missing,) = eventually(lambda: ends.board.ask(down), 30)
    assert (missing["metric"]["side"], missing["metric"]["instance"]) == ("receiver", ends.board.receiver_at)
    ends.receiver_server = MetricsServer(parse_address(ends.board.receiver_at), ends.receiver.registry)
    eventually(lambda: ends.board.ask(down) == [], 30)

"""What lies in deploy/ and grafana/ works with the real tools: systemd, promtool, and a Prometheus that scrapes.

The programs of Prometheus are those of the distribution, unpacked by scripts/bootstrap, or installed ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from replicator.link.address import Address, parse_address
from replicator.link.tls import TlsFiles, client_context, server_context
from replicator.observe.http import MetricsServer
from replicator.observe.metrics import ReceiverMetrics, SenderMetrics
from tests.support.deadline import eventually
from tests.support.pair import free_port

PROJECT = Path(__file__).resolve().parents[2]
SYSTEMD = PROJECT / "deploy/systemd"
PROMETHEUS = PROJECT / "deploy/prometheus"
UNITS = ["rsyncfs-send@.service", "rsyncfs-receive@.service"]
WORDS = frozenset(
    [
        "sum",
        "by",
        "on",
        "and",
        "rate",
        "increase",
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


# Units


def verify(directory: Path, unit: str, text: str) -> str:
    """What systemd-analyze has to say of a unit: nothing, if it is right. The command is the one of this checkout."""
    command = Path(sys.prefix) / "bin/rsyncfs"
    assert command.is_file(), f"{command} is missing: run make install"
    path = directory / unit
    path.write_text(text.replace("/opt/rsyncfs/.venv/bin/rsyncfs", str(command)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr + (f"exit code {done.returncode}" if done.returncode else "")


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_the_unit(tmp_path: Path, unit: str) -> None:
    assert verify(tmp_path, unit, (SYSTEMD / unit).read_text()) == ""


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_would_object_to_a_misspelt_unit(tmp_path: Path, unit: str) -> None:
    text = (SYSTEMD / unit).read_text().replace("StateDirectory=", "StateDirektory=")
    assert "StateDirektory" in verify(tmp_path, unit, text)


@pytest.mark.parametrize("end", ["send", "receive"])
def test_the_unit_uses_what_its_environment_file_sets(end: str) -> None:
    unit = (SYSTEMD / f"rsyncfs-{end}@.service").read_text()
    used = set(
        re.findall(r"\$\{?([A-Z_]+)\}?", next(line for line in unit.splitlines() if line.startswith("ExecStart=")))
    )
    given = set(re.findall(r"(?m)^([A-Z_]+)=", (SYSTEMD / f"{end}.env.example").read_text()))
    assert used <= given
    assert given - used == {"RSYNCFS_LOG", "RSYNCFS_LOG_LEVEL"}


@pytest.mark.parametrize("end", ["send", "receive"])
def test_the_command_has_the_options_that_unit_and_environment_file_give(end: str) -> None:
    given = "\n".join(
        line
        for path in (SYSTEMD / f"rsyncfs-{end}@.service", SYSTEMD / f"{end}.env.example")
        for line in path.read_text().splitlines()
        if line.startswith(("ExecStart=", "OPTIONS="))
    )
    options = set(re.findall(r"(?<= )--[a-z-]+|(?<==)--[a-z-]+", given))
    assert len(options) >= 5
    done = subprocess.run(
        [sys.executable, "-m", "replicator", end, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"},
    )
    assert options <= set(re.findall(r"--[a-z-]+", done.stdout))


def test_the_kernel_knows_the_settings_that_are_set() -> None:
    for line in (PROJECT / "deploy/sysctl.d/60-rsyncfs.conf").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition(" = ")
            assert Path("/proc/sys", name.replace(".", "/")).is_file()
            assert int(value) > 0


def setting(end: str, name: str) -> str:
    """The value of a setting in a unit."""
    found = re.search(rf"(?m)^{name}=(.*)$", (SYSTEMD / f"rsyncfs-{end}@.service").read_text())
    assert found is not None, name
    return found[1]


@contextlib.contextmanager
def confined(end: str, log: Path, words: Sequence[str | Path], writable: Path | None = None) -> Iterator[None]:
    """A running, ready end with no more capabilities than its unit grants; if asked, on a root that is read-only."""
    granted = [name.removeprefix("CAP_").lower() for name in setting(end, "CapabilityBoundingSet").split()]
    command = [
        *("setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=" + ",+".join(["-all", *granted])),
        *(sys.executable, "-m", "replicator", end, *map(str, words)),
    ]
    environment = dict(os.environ)
    if writable is not None:
        # As ProtectSystem=strict, CacheDirectory and StateDirectory do it.
        environment["TMPDIR"] = str(writable)
        sandbox = f"""
            mkdir -p /var/cache/rsyncfs
            for kept in '{writable}' /var/cache/rsyncfs; do mount --bind "$kept" "$kept"; done
            mount -o remount,bind,ro /
            exec "$@"
        """
        command = ["unshare", "-m", "--propagation=slave", "bash", "-euc", sandbox, "bash", *command]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        eventually(lambda: "ready\n" in log.read_text() or process.poll() is not None, 60)
        assert process.poll() is None, log.read_text()
        yield
        process.terminate()
        assert process.wait(20) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_the_privileges_of_the_units_suffice(scratch: Path) -> None:
    source, replica, states = (scratch / name for name in ("source", "replica", "states"))
    for directory in (source, replica, states):
        directory.mkdir()
    assert setting("send", "ProtectSystem") == "strict"
    assert setting("send", "Environment") == "TMPDIR=%C/rsyncfs"
    at = f"127.0.0.1:{free_port()}"
    with (
        confined(
            "receive", scratch / "receive.log", ["--root", replica, "--listen", at, "--state", states / "receive"]
        ),
        confined("send", scratch / "send.log", [source, at, "--state", states / "send"], writable=states),
    ):
        (source / "secret").write_text("text")
        os.setxattr(source / "secret", "trusted.note", b"noted")
        os.setxattr(source / "secret", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
        os.mknod(source / "null", 0o20600, os.makedev(1, 3))
        (source / "tool").write_text("text")
        os.chown(source / "tool", 1234, 1235)
        (source / "tool").chmod(0o4750)
        (source / "secret").chmod(0)
        (source / "directory").mkdir()
        os.link(source / "secret", source / "directory/other")
        subprocess.run(
            [sys.executable, "-m", "replicator", "wait", "--state", states / "send", "--timeout", "20"], check=True
        )
        assert (replica / "directory/other").read_text() == "text"
        assert (replica / "secret").stat().st_mode == 0o100000
        assert os.getxattr(replica / "secret", "trusted.note") == b"noted"
        assert os.getxattr(replica / "secret", "security.capability")[4:8] == bytes.fromhex("00200000")
        assert (replica / "null").stat().st_rdev == os.makedev(1, 3)
        tool = (replica / "tool").stat()
        assert (tool.st_mode, tool.st_uid, tool.st_gid) == (0o104750, 1234, 1235)


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
class Scraped:
    """Both ends' metrics in this process, and a Prometheus with the shipped configuration that scrapes them."""

    sender: SenderMetrics
    receiver: ReceiverMetrics
    sender_at: str
    receiver_at: str
    receiver_server: MetricsServer
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
        """Whether both ends have been scraped twice, so that rates exist."""
        try:
            return len(self.ask('count_over_time(up{job="rsyncfs"}[10s]) > 2')) == 2
        except OSError:
            return False


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    directory = tmp_path_factory.mktemp("prometheus")
    sender, receiver = SenderMetrics(), ReceiverMetrics()
    servers = [MetricsServer(Address("127.0.0.1", 0), end.registry) for end in (sender, receiver)]
    text = (PROMETHEUS / "prometheus.yml").read_text()
    for shipped, real in (
        ("127.0.0.1:7411", str(servers[0].address)),
        ("127.0.0.1:7412", str(servers[1].address)),
        ("scrape_interval: 5s", "scrape_interval: 200ms"),
        ("evaluation_interval: 15s", "evaluation_interval: 200ms"),
    ):
        assert text.count(shipped) == 1
        text = text.replace(shipped, real)
    (directory / "prometheus.yml").write_text(text)
    shutil.copy(PROMETHEUS / "rsyncfs.rules.yml", directory)
    port = free_port()
    with (directory / "log").open("wb") as log:
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
        made = Scraped(sender, receiver, str(servers[0].address), str(servers[1].address), servers[1], port)
        eventually(made.scraped, 60)
        yield made
        servers[1] = made.receiver_server
    finally:
        process.kill()
        process.wait()
        for server in servers:
            server.close()


@pytest.mark.parametrize("expression", panel_expressions())
def test_prometheus_has_an_answer_to_each_panel(scraped: Scraped, expression: str) -> None:
    assert scraped.ask(expression)


def test_prometheus_evaluates_every_alert_without_an_error(scraped: Scraped) -> None:
    def rules() -> list[Any]:
        return [rule for group in scraped.api("rules")["groups"] for rule in group["rules"]]

    eventually(lambda: all(rule["health"] != "unknown" for rule in rules()), 30)
    assert {rule["name"]: rule.get("lastError", "") for rule in rules()} == dict.fromkeys(alerts(), "")


def test_alerts_keep_quiet_while_all_is_well_and_speak_when_it_is_not(scraped: Scraped) -> None:
    def speaking() -> set[str]:
        return {name for name, expression in alerts().items() if scraped.ask(expression)}

    sender, receiver = scraped.sender, scraped.receiver
    sender.connected.set(1)
    receiver.connected.set(1)
    sender.lag_applied.observe_many([0.001] * 100)
    sender.resyncs.add("start")
    eventually(lambda: speaking() == set(), 30)

    sender.connected.set(0)
    receiver.connected.set(0)
    receiver.epoch_open.set(1)
    sender.oldest_unreplicated.set(61)
    sender.held_files.set(1)
    sender.lag_applied.observe_many([20] * 1000)
    sender.events_dropped.add("ring_full")
    sender.resyncs.add("names_overflow")
    sender.verify_differences.add()
    eventually(lambda: speaking() == set(alerts()) - {"RsyncfsDown"}, 30)


def test_an_end_that_does_not_answer_is_noticed(scraped: Scraped) -> None:
    down = alerts()["RsyncfsDown"]
    assert scraped.ask(down) == []
    scraped.receiver_server.close()
    (missing,) = eventually(lambda: scraped.ask(down), 30)
    assert (missing["metric"]["side"], missing["metric"]["instance"]) == ("receiver", scraped.receiver_at)
    scraped.receiver_server = MetricsServer(parse_address(scraped.receiver_at), scraped.receiver.registry)
    eventually(lambda: scraped.ask(down) == [], 30)


# Certificates


def test_the_certificates_of_the_manual_open_a_connection(tmp_path: Path) -> None:
    manual = (PROJECT / "deploy/README.md").read_text().partition("## Certificates")[2]
    commands = "".join(
        line.removeprefix("    ") + "\n"
        for line in manual.partition("## Prometheus")[0].splitlines()
        if line.startswith("    ")
    )
    assert commands.count("openssl") == 3
    subprocess.run(["bash", "-euc", commands], cwd=tmp_path, check=True, capture_output=True)
    files = TlsFiles(*(str(tmp_path / name) for name in ("host.crt", "host.key", "ca.crt")))
    sides = []
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides.append(server_context(files).wrap_bio(to_server, to_client, server_side=True))
    sides.append(client_context(files).wrap_bio(to_client, to_server, server_hostname="replica.example"))
    done: set[ssl.SSLObject] = set()

    def shaken() -> bool:
        for side in sides:
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
                done.add(side)
        return len(done) == 2

    eventually(shaken)
    assert sides[0].getpeercert()

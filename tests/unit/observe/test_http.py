"""The metrics server: what it answers, and how it refuses."""

import http.client
import socket
from collections.abc import Iterator

import orjson
import pytest
from prometheus_client import CollectorRegistry, Gauge

from replicator.errors import EnvironmentFault, UsageError
from replicator.link.address import Address
from replicator.observe.http import MetricsServer, metrics_address
from replicator.observe.metrics import SenderMetrics


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    server = MetricsServer(Address("127.0.0.1", 0), SenderMetrics().registry)
    yield server
    server.close()


def get(server: MetricsServer, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(*server.address, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def test_metrics_are_served_as_prometheus_text(server: MetricsServer) -> None:
    status, content_type, body = get(server, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain")
    assert b"\nrsyncfs_connected 0.0\n" in body


def test_healthz_says_ok(server: MetricsServer) -> None:
    status, content_type, body = get(server, "/healthz")
    assert (status, content_type) == (200, "application/json")
    assert orjson.loads(body) == {"healthy": True}


def test_healthz_of_an_unhealthy_process_fails_and_says_why() -> None:
    server = MetricsServer(
        Address("127.0.0.1", 0), CollectorRegistry(), lambda: (False, {"reason": "the source is gone"})
    )
    try:
        status, _, body = get(server, "/healthz")
    finally:
        server.close()
    assert status == 503
    assert orjson.loads(body) == {"healthy": False, "reason": "the source is gone"}


def test_other_paths_are_not_found(server: MetricsServer) -> None:
    assert get(server, "/")[0] == 404
    assert get(server, "/metrics/../etc/passwd")[0] == 404


def test_head_has_no_body(server: MetricsServer) -> None:
    assert get(server, "/metrics", "HEAD")[0::2] == (200, b"")


def test_a_client_that_says_nothing_does_not_keep_others_waiting(server: MetricsServer) -> None:
    with socket.create_connection(server.address):
        assert get(server, "/metrics")[0] == 200


def test_a_metric_that_fails_costs_that_answer_and_not_the_server(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    broken = [True]

    def read() -> float:
        if broken[0]:
            raise RuntimeError("not now")
        return 5.0

    Gauge("five", "Help.", registry=registry).set_function(read)
    server = MetricsServer(Address("127.0.0.1", 0), registry)
    try:
        assert get(server, "/metrics")[0] == 500
        broken[0] = False
        assert get(server, "/metrics")[2].endswith(b"five 5.0\n")
    finally:
        server.close()
    assert "not now" in caplog.text


def test_a_taken_port_is_named_with_the_cure(server: MetricsServer) -> None:
    with pytest.raises(
        EnvironmentFault, match=rf"127\.0\.0\.1:{server.address.port}: the port is taken; give --metrics"
    ) as caught:
        MetricsServer(Address("127.0.0.1", server.address.port), CollectorRegistry())
    assert caught.value.exit_code == 3


def test_an_address_of_another_machine_is_an_environment_fault() -> None:
    with pytest.raises(EnvironmentFault, match=r"cannot serve metrics on 192\.0\.2\.1:0"):
        MetricsServer(Address("192.0.2.1", 0), CollectorRegistry())


def test_an_unknown_host_is_an_environment_fault() -> None:
    with pytest.raises(EnvironmentFault, match=r"host\.invalid:0"):
        MetricsServer(Address("host.invalid", 0), CollectorRegistry())


def test_a_closed_server_gives_its_port_back() -> None:
    first = MetricsServer(Address("127.0.0.1", 0), CollectorRegistry())
    first.close()
    second = MetricsServer(Address("127.0.0.1", first.address.port), CollectorRegistry())
    second.close()
    assert second.address.port == first.address.port


def test_it_listens_on_ipv6_too() -> None:
    server = MetricsServer(Address("::1", 0), CollectorRegistry())
    try:
        assert get(server, "/healthz")[0] == 200
    finally:
        server.close()


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7411", "127.0.0.1", 7411),
        ("[::1]:7411", "::1", 7411),
        ("metrics.example:0", "metrics.example", 0),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert metrics_address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", "7411", "localhost", "localhost:", "localhost:http", "::1:7411", "a:65536", "a:-1", "a:²", ":7411", "[::1]"],
)
def test_what_is_no_address_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match=r"HOST:PORT"):
        metrics_address(text)

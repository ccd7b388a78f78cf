"""Addresses, and which of them may go without encryption."""

from __future__ import annotations

import socket
import ssl

import pytest

from replicator.errors import EnvironmentFault, UsageError
from replicator.link.address import Address, Endpoint, parse_address, resolve
from replicator.link.tls import require_tls, tls_files


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7410", ("127.0.0.1", 7410)),
        ("host.example:1", ("host.example", 1)),
        ("host", ("host", 7410)),
        ("[::1]:99", ("::1", 99)),
        ("[fe80::1%eth0]", ("fe80::1%eth0", 7410)),
        ("::1", ("::1", 7410)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
    ],
)
def test_addresses_are_read(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", ":7410", "host:", "host:x", "host:65536", "host:-1", "[::1", "[::1]x", "host:¹"])
def test_other_texts_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


def test_addresses_are_written_as_they_are_read() -> None:
    for text in ("127.0.0.1:7410", "[::1]:7410"):
        assert str(parse_address(text)) == text


def test_a_host_that_does_not_exist_is_an_environment_fault() -> None:
    for host in ("no-such-host.invalid", "x" * 300, "a..b"):
        with pytest.raises(EnvironmentFault, match="cannot find the host"):
            resolve(Address(host, 1))


@pytest.mark.parametrize(
    ("ip", "inside"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.7", False),
        ("fe80::1%eth0", False),
        ("::ffff:192.0.2.7", False),
    ],
)
def test_only_loopback_stays_inside(ip: str, inside: bool) -> None:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    endpoint = Endpoint(family, (ip, 1), Address(ip, 1))
    assert endpoint.loopback is inside
    if inside:
        require_tls(endpoint.address, [endpoint], None)
    else:
        with pytest.raises(UsageError, match="--tls-cert FILE --tls-key FILE --tls-ca FILE"):
            require_tls(endpoint.address, [endpoint], None)
    require_tls(endpoint.address, [endpoint], ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def test_one_address_outside_is_enough_to_need_tls() -> None:
    both = [Endpoint(socket.AF_INET, (ip, 1), Address("both", 1)) for ip in ("127.0.0.1", "192.0.2.7")]
    with pytest.raises(UsageError, match=r"both:1.*192\.0\.2\.7"):
        require_tls(Address("both", 1), both, None)


def test_tls_takes_all_three_files_or_none() -> None:
    assert tls_files(None, None, None) is None
    assert tls_files("c", "k", "a") is not None
    for some in [("c", None, None), ("c", "k", None), (None, "k", "a"), (None, None, "a")]:
        with pytest.raises(UsageError, match="--tls-ca"):
            tls_files(*some)

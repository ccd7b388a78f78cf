"""Addresses as people type them, and what they resolve to.

Takes HOST:PORT; gives socket addresses. Looking up a name can block for seconds; numbers and `localhost` do not.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any, NamedTuple

from replicator.errors import EnvironmentFault, UsageError

DEFAULT_PORT = 7410


class Address(NamedTuple):
    """A host, as typed (no brackets), and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Endpoint(NamedTuple):
    """One thing that an address resolved to. `address` is what was typed: certificates are made out to that."""

    family: socket.AddressFamily
    sockaddr: tuple[Any, ...]
    address: Address

    @property
    def loopback(self) -> bool:
        """Whether it cannot leave this host."""
        ip = ipaddress.ip_address(str(self.sockaddr[0]).partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            return ip.ipv4_mapped.is_loopback
        return ip.is_loopback


def parse_address(text: str) -> Address:
    """HOST:PORT, [V6]:PORT, or without a port. UsageError if it is none of them."""
    host, port = text, str(DEFAULT_PORT)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UsageError(f"{text!r} is no address: write [V6-ADDRESS]:PORT")
        port = rest[1:] if rest else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise UsageError(f"{text!r} is no address: write HOST:PORT, as in 192.0.2.7:{DEFAULT_PORT}")
    return Address(host, int(port))


def resolve(address: Address) -> list[Endpoint]:
    """What the host means now, at least one. May block. EnvironmentFault if it means nothing."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is no valid host name"
        raise EnvironmentFault(f"cannot find the host {address.host!r}: {cause}; check its spelling and DNS") from None
    return [Endpoint(family, sockaddr, address) for family, _, _, _, sockaddr in found]

"""How a TCP connection begins: connecting, listening, accepting; nothing blocks.

Takes addresses, gives a `Transport` for each connection.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl

from replicator.errors import EnvironmentFault
from replicator.link.address import Address, Endpoint, resolve
from replicator.link.tls import TlsPipe
from replicator.link.transport import GONE, LinkLost, Transport


def connect(endpoint: Endpoint, tls: ssl.SSLContext | None = None) -> Transport:
    """Begin to connect. LinkLost at once or later, from `flush()` or `receive()`."""
    peer = str(endpoint.address)
    try:
        sock = socket.socket(endpoint.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise LinkLost(f"cannot connect to {peer}: {error.strerror}") from None
    try:
        pipe = None if tls is None else TlsPipe.client(tls, endpoint.address.host)
        transport = Transport(sock, peer, pipe, connecting=True)
        code = sock.connect_ex(endpoint.sockaddr)
        if code not in (0, errno.EINPROGRESS):
            raise LinkLost(f"cannot connect to {peer}: {GONE.get(code, os.strerror(code))}")
    except BaseException:
        sock.close()
        raise
    return transport


def listen(address: Address, backlog: int = 16) -> socket.socket:
    """A non-blocking listening socket; port 0 lets the kernel choose. EnvironmentFault if the port is taken."""
    endpoint = resolve(address)[0]
    sock = socket.socket(endpoint.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(endpoint.sockaddr)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        hint = {
            errno.EADDRINUSE: "another program listens there; stop it or choose another port with --listen",
            errno.EADDRNOTAVAIL: "this host has no such address; give one of its own",
            errno.EACCES: "ports below 1024 need root",
        }.get(error.errno or 0, str(error.strerror))
        raise EnvironmentFault(f"cannot listen on {address}: {hint}") from None
    return sock


def accept(listener: socket.socket, tls: ssl.SSLContext | None = None) -> Transport | None:
    """The next caller; None if there is none (any more)."""
    try:
        sock, peer = listener.accept()
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
            raise EnvironmentFault(f"cannot accept a connection: {error.strerror}; raise LimitNOFILE") from None
        return None  # the caller gave up between connecting and being accepted
    try:
        return Transport(sock, str(Address(*peer[:2])), None if tls is None else TlsPipe.server(tls))
    except OSError:
        sock.close()
        return None

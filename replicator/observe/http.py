"""The HTTP server behind --metrics: /metrics for Prometheus, /healthz for a supervisor.

Takes HOST:PORT, a registry, and a function that tells the health; gives a server in a thread of its own. It is plain
HTTP without authentication and reveals numbers only: listen on loopback, or on a network that may know them. It does
not promise to answer while the process is stopped, only never to disturb the replication.
"""

from __future__ import annotations

import errno
import logging
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from replicator import __version__
from replicator.errors import EnvironmentFault, UsageError
from replicator.link.address import Address, parse_address

_REQUEST_TIMEOUT = 10.0
"""Seconds that a client may take to say what it wants, and to take the answer."""

_log = logging.getLogger(__name__)

Health = Callable[[], tuple[bool, Mapping[str, object]]]
"""Whether all is well, and what to tell about it (orjson must be able to write it). Called in the server's thread."""


def _well() -> tuple[bool, Mapping[str, object]]:
    return True, {}


def metrics_address(text: str) -> Address:
    """HOST:PORT or [V6]:PORT; unlike elsewhere there is no usual port. UsageError if it is anything else."""
    address, _, port = text.rpartition(":")
    if not address or not port or (":" in address and not address.endswith("]")):
        raise UsageError(f"{text!r} is no address to serve metrics on: write HOST:PORT, as in 127.0.0.1:7411")
    return parse_address(text)


class MetricsServer:
    """Serves from construction to `close`. EnvironmentFault if the address cannot be had; port 0 takes a free one."""

    def __init__(self, address: Address, registry: CollectorRegistry, health: Health = _well) -> None:
        try:
            family, _, _, _, found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            self._server = _Server(family, (str(found[0]), int(found[1])), registry, health)
        except (socket.gaierror, UnicodeError) as error:
            raise EnvironmentFault(
                f"cannot serve metrics on {address}: the host is not known; give --metrics an address of this machine"
            ) from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                cure = "the port is taken; give --metrics another one, or stop the process that listens there"
            elif error.errno == errno.EACCES:
                cure = "the port needs more privileges; give --metrics one above 1023"
            else:
                cure = f"{error.strerror}; give --metrics an address of this machine"
            raise EnvironmentFault(f"cannot serve metrics on {address}: {cure}") from error
        self.address = Address(self._server.server_name, self._server.server_port)
        """Where it listens: with the port that was taken."""
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening. Requests that are being answered are left to end by themselves."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, family: int, address: tuple[str, int], registry: CollectorRegistry, health: Health) -> None:
        self.address_family = family
        self.registry = registry
        self.health = health
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # The base class looks its own name up in the DNS, which can take long and serves nothing here.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exception()
        if isinstance(error, ConnectionError | TimeoutError):
            return  # a client that went away in the middle of an answer
        _log.warning("a request for metrics failed: %s: %s", type(error).__name__, error)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _REQUEST_TIMEOUT
    server_version = f"rsyncfs/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
            try:
                body = encoder(self.server.registry)
            except Exception:
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", b"a metric failed\n")
                raise
            self._answer(HTTPStatus.OK, content_type, body)
        elif path == "/healthz":
            well, told = self.server.health()
            body = orjson.dumps({"healthy": well, **told}) + b"\n"
            self._answer(HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, "application/json", body)
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"/metrics and /healthz are here\n")

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass  # a scrape every few seconds is not worth a line

"""TLS 1.3 with both sides authenticated, as a pipe between bytes; no I/O but reading the certificate files.

Takes the three files of --tls-cert, --tls-key and --tls-ca. The client checks that the server's certificate is made
out to the host that was typed; both check that the other's is signed by the authority. Who may replicate is thus
whoever holds a certificate of that authority.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NoReturn

from replicator.errors import EnvironmentFault, RefusedError, RemoteError, RsyncfsError, UsageError
from replicator.link.address import Address, Endpoint
from replicator.link.frame import Buffer

FLAGS = "--tls-cert FILE --tls-key FILE --tls-ca FILE"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: this side's certificate (with its chain) and key, and the authority that signed the peer's."""

    certificate: str
    key: str
    authority: str


def tls_files(certificate: str | None, key: str | None, authority: str | None) -> TlsFiles | None:
    """The three options together; None if none was given. UsageError if only some were."""
    if certificate and key and authority:
        return TlsFiles(certificate, key, authority)
    if certificate or key or authority:
        raise UsageError(f"TLS needs all of {FLAGS}")
    return None


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For the listening side. EnvironmentFault if a file does not serve."""
    return _context(files, ssl.PROTOCOL_TLS_SERVER)


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """For the connecting side. EnvironmentFault if a file does not serve."""
    return _context(files, ssl.PROTOCOL_TLS_CLIENT)


def require_tls(address: Address, endpoints: Sequence[Endpoint], tls: TlsFiles | ssl.SSLContext | None) -> None:
    """UsageError unless there is TLS or no endpoint can leave this host."""
    outside = [endpoint for endpoint in endpoints if not endpoint.loopback]
    if tls is None and outside:
        raise UsageError(
            f"{address} is reached over the network ({outside[0].sockaddr[0]}), and only loopback may go without"
            f" encryption: give {FLAGS} on both sides"
        )


def _context(files: TlsFiles, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = protocol == ssl.PROTOCOL_TLS_CLIENT
    for option, path in (("cert", files.certificate), ("key", files.key), ("ca", files.authority)):
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            raise EnvironmentFault(f"cannot read {path!r} (--tls-{option}): {error.strerror}") from None
    try:
        context.load_verify_locations(files.authority)
    except (ssl.SSLError, OSError):
        raise EnvironmentFault(f"{files.authority!r} (--tls-ca) holds no certificate in PEM form") from None
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            cause = "the key belongs to another certificate"
        else:
            cause = "one of them is not in PEM form, or the key has a password"
        raise EnvironmentFault(
            f"cannot use {files.certificate!r} (--tls-cert) with {files.key!r} (--tls-key): {cause}"
        ) from None
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # every connection shows its certificate
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")


class TlsPipe:
    """One connection's TLS: plain bytes on one side, records on the other."""

    RECORD: ClassVar[int] = 16 * 1024
    """Plain bytes in one record, at most."""
    CHUNK: ClassVar[int] = 256 * 1024
    """Bytes handled at once."""

    def __init__(self, context: ssl.SSLContext, *, server: bool, host: str | None) -> None:
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=server, server_hostname=host)
        self._server = server
        self._host = host
        self.ready = False
        """Whether the handshake is done."""

    @classmethod
    def client(cls, context: ssl.SSLContext, host: str) -> TlsPipe:
        """For the connecting side; the peer must have a certificate for `host` (a name or an IP address)."""
        return cls(context, server=False, host=host.partition("%")[0])

    @classmethod
    def server(cls, context: ssl.SSLContext) -> TlsPipe:
        """For the listening side."""
        return cls(context, server=True, host=None)

    @property
    def pending_out(self) -> int:
        """Bytes of records that wait to be sent."""
        return self._out.pending

    def feed(self, data: bytes) -> None:
        """Records that arrived."""
        self._in.write(data)

    def take(self) -> memoryview:
        """Records to send; empty if there are none."""
        return memoryview(self._out.read())

    def handshake(self) -> None:
        """Go on with it as far as the bytes allow. RefusedError or RemoteError if it fails."""
        try:
            self._tls.do_handshake()
            self.ready = True
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            self._fail(error)

    def write(self, data: Buffer) -> None:
        """Plain bytes to send, all of them taken. Only when `ready`."""
        rest = memoryview(data)
        while len(rest):
            rest = rest[self._tls.write(rest) :]

    def read_into(self, target: memoryview) -> int:
        """Plain bytes that arrived, into `target`; how many, 0 if there are none yet (or never again)."""
        try:
            return self._tls.read(len(target), target)  # type: ignore[return-value]
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            return 0
        except ssl.SSLError as error:
            self._fail(error)

    def _fail(self, error: ssl.SSLError) -> NoReturn:
        """A refused certificate will be refused again, so the connecting side may give up; a listener goes on."""
        certificates: type[RsyncfsError] = RemoteError if self._server else RefusedError
        reason = error.reason or ""
        if isinstance(error, ssl.SSLCertVerificationError):
            cause = error.verify_message.rstrip(".")
            if self._server:
                raise certificates(f"a caller's certificate was refused: {cause}")
            raise certificates(
                f"the certificate of {self._host} was refused: {cause}; it must be signed by the --tls-ca and made"
                f" out to {self._host}"
            )
        if "PEER_DID_NOT_RETURN_A_CERTIFICATE" in reason:
            raise certificates("a caller has no certificate: give --tls-cert and --tls-key on the sender")
        if "ALERT" in reason and any(word in reason for word in ("CA", "CERT", "ACCESS")):
            alert = reason.rpartition("ALERT_")[2].lower().replace("_", " ")
            raise certificates(
                f"the peer refused this side's certificate ({alert}): it must be signed by the peer's --tls-ca"
            )
        if reason in ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"):
            raise RemoteError("the peer has no TLS of version 1.3: update its OpenSSL")
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"):
            raise RemoteError("the peer does not speak TLS: give the --tls-* options on both sides")
        raise RemoteError(f"TLS failed: {reason.lower().replace('_', ' ') or error}")

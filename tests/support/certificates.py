"""A certificate authority for one test: keys and certificates for both ends, and a stranger's.

Takes a directory; writes PEM files into it with the `openssl` command. The certificates live for a day.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

ALTERNATIVE = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:10.77.0.1,IP:10.77.0.2"


class Tls(NamedTuple):
    """The three files that an end is given."""

    certificate: Path
    key: Path
    authority: Path

    def options(self) -> list[str]:
        """As command line options of `send` and `receive`."""
        return [
            *("--tls-cert", str(self.certificate)),
            *("--tls-key", str(self.key)),
            *("--tls-ca", str(self.authority)),
        ]


def _openssl(*words: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def authority(directory: Path, name: str = "authority") -> Path:
    """Make a certificate authority `name`.pem, with its key beside it, and return the certificate's path."""
    directory.mkdir(parents=True, exist_ok=True)
    certificate = directory / f"{name}.pem"
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"),
        *("-subj", f"/CN={name}", "-keyout", certificate.with_suffix(".key"), "-out", certificate),
        *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
    )
    return certificate


def issue(directory: Path, name: str, ca: Path) -> Tls:
    """Make a key and a certificate `name`, signed by `ca`, that serves on either end."""
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    request, extensions = directory / f"{name}.csr", directory / f"{name}.ext"
    extensions.write_text(ALTERNATIVE + "\nextendedKeyUsage=serverAuth,clientAuth\n")
    _openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", f"/CN={name}", "-keyout", key, "-out", request),
    )
    _openssl(
        *("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca.with_suffix(".key"), "-CAcreateserial"),
        *("-days", "1", "-extfile", extensions, "-out", certificate),
    )
    return Tls(certificate, key, ca)

"""What a command was told to do, as values. Parsing is cli.py's; these are checked where they are used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from replicator.link.address import Address
from replicator.link.tls import TlsFiles

STATE = Path("/var/lib/rsyncfs")


@dataclass(frozen=True, slots=True)
class SendOptions:
    """`rsyncfs send`."""

    source: Path
    address: Address
    state: Path = STATE / "send"
    metrics: str | None = None
    sensor: str = "auto"
    exclude: tuple[str, ...] = ()
    max_delete: int | None = None
    """Names that may be deleted within a minute; None for any number."""
    tls: TlsFiles | None = None


@dataclass(frozen=True, slots=True)
class ReceiveOptions:
    """`rsyncfs receive`."""

    root: Path
    listen: Address
    state: Path = STATE / "receive"
    metrics: str | None = None
    adopt: bool = False
    tls: TlsFiles | None = None

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
    scan: str = "auto"
    exclude: tuple[str, ...] = ()
    max_delete: int | None = None
    """Names that may be deleted within a minute; None for any number."""
    tls: TlsFiles | None = None
    detach_hooks: bool = False
    """A clean stop leaves nothing in the kernel."""
    ring_bytes: int | None = None
    lost_inodes: int | None = None
    """See `BpfSensor`."""
    scrub: float | None = None
    """Seconds from the end of one scrub to the next; None for none."""
    scrub_rate: int = 20 << 20
    """Bytes of content that a scrub reads each second."""


@dataclass(frozen=True, slots=True)
class ReceiveOptions:
    """`rsyncfs receive`."""

    root: Path
    listen: Address
    state: Path = STATE / "receive"
    metrics: str | None = None
    adopt: bool = False
    tls: TlsFiles | None = None

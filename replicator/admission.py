"""Whether a sender is let in, and what each side is told then.

Takes what a sender says first and the replica that it wants to feed; gives the refusal, in words for the person at the
sender, or the welcome. Decides nothing about who fed the replica before in other places: see mirror/adopt.py.
"""

from __future__ import annotations

from pathlib import Path

from replicator import __version__
from replicator.host import ancestors, boot_id, nested
from replicator.link import message as m
from replicator.mirror.mirror import Mirror


def objection(hello: m.Hello, mirror: Mirror, root: Path, *, busy: bool, sick: str | None) -> m.Refuse | None:
    """Why not, or None. `busy`: another sender has the session; `sick`: why nothing would be durable."""
    if not hello.source:
        return m.Refuse(
            "version",
            f"the sender speaks protocol versions {hello.oldest} to {hello.newest}, this receiver"
            f" {m.OLDEST_PROTOCOL} to {m.PROTOCOL}: bring both hosts to the same version of rsyncfs",
            permanent=True,
        )
    if mirror.source not in (None, hello.source):
        return m.Refuse(
            "other-source",
            f"the replica {root} belongs to another source: give each source a replica of its own, or start the"
            " receiver with --adopt and an empty state directory",
            permanent=True,
        )
    if busy:
        return m.Refuse("busy", f"the replica {root} is being fed by another sender", permanent=False)
    local = hello.boot_id == boot_id() and hello.ancestors
    if local and nested(hello.ancestors, ancestors(root)):
        return m.Refuse(
            "nested",
            f"the source and the replica {root} lie one inside the other: choose directories that do not",
            permanent=True,
        )
    if sick is not None:
        return m.Refuse("sick", sick, permanent=False)
    if not mirror.still_there():
        return m.Refuse("root-gone", f"the replica {root} is not what it was", permanent=False)
    return None


def welcome(mirror: Mirror) -> m.Welcome:
    """What a sender that is let in must know of the replica."""
    return m.Welcome(
        replica=mirror.identity,
        empty=mirror.empty,
        instance=mirror.instance,
        durable=mirror.durable_epoch,
        open=mirror.open_epoch or 0,
        software=__version__,
    )

"""What the receiver answers between epochs: names that only it has, and comparisons for `verify`.

Takes the bodies of requests, which come from a peer that is not trusted; gives bodies of answers, at once or (what has
to read content) later. Reads the replica and changes nothing but the mark of a torn one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replicator.errors import RemoteError
from replicator.link import strict
from replicator.mirror.mirror import Mirror
from replicator.model import FileId, Slot
from replicator.verify.digests import names_digest
from replicator.verify.judge import Judge
from replicator.work import Worker

NAMELESS = 10_000
"""Inodes named in one answer."""


class Answers:
    """One replica's."""

    def __init__(self, mirror: Mirror, worker: Worker) -> None:
        """`worker` reads content."""
        self._mirror = mirror
        self._worker = worker
        self._judge = Judge(mirror, worker)

    def begin(self) -> None:
        """A session begins: who asked before waits no more."""
        self._judge.close()
        self._judge = Judge(self._mirror, self._worker)

    def answer(self, body: dict[str, Any], reply: Callable[[dict[str, Any]], None]) -> None:
        """Answer a request, once. RemoteError if it makes no sense."""
        try:
            match body.get("op"):
                case "names":
                    reply(
                        self._compare_names([(strict.file_id(id), str(digest)) for id, digest in body["directories"]])
                    )
                case "nameless":
                    reply({"ids": [id.text() for id in self._mirror.inspection.nameless(NAMELESS)]})
                case "beneath":
                    reply(self._count([strict.slot(*pair) for pair in body["names"]], int(body["most"])))
                case "mended":
                    self._mirror.mended()
                    reply({})
                case "compare":
                    self._judge.compare(body["items"], reply)
                case _:
                    reply({"error": "the receiver's version does not know that request"})
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise RemoteError(f"the peer made a request that makes no sense: {error}") from error

    def _count(self, slots: list[Slot], most: int) -> dict[str, Any]:
        """How many names each of those is with all beneath it, up to `most`."""
        return {"numbers": [self._mirror.inspection.count(slot, most) for slot in slots]}

    def _compare_names(self, directories: list[tuple[FileId, str]]) -> dict[str, Any]:
        """All names of those directories where they are not what the sender has."""
        differing = []
        for directory, digest in directories:
            try:
                names = self._mirror.inspection.names(directory)
            except (OSError, KeyError):
                names = {}  # it is not here (any more), and whoever told of it may not have told of what is in it
            if names_digest(names, b"".join(names.values())) == digest:
                continue
            differing.append((directory.text(), [name.decode("latin-1") for name in names]))
        return {"directories": differing}

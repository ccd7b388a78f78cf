"""What the receiver answers between epochs: names that only it has, and comparisons for `verify`.

Takes the bodies of requests, which come from a peer that is not trusted; gives bodies of answers. Reads the replica and
changes nothing but the mark of a torn one.
"""

from __future__ import annotations

from typing import Any

from replicator.errors import RemoteError
from replicator.link import strict
from replicator.mirror.mirror import Mirror
from replicator.model import FileId, Slot
from replicator.verify import compare, names_digest

NAMELESS = 10_000
"""Inodes named in one answer."""


class Answers:
    """One replica's."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request. RemoteError if it makes no sense."""
        try:
            match body.get("op"):
                case "names":
                    return self._compare_names(
                        [(strict.file_id(id), str(digest)) for id, digest in body["directories"]]
                    )
                case "nameless":
                    return {"ids": [id.text() for id in self._mirror.nameless(NAMELESS)]}
                case "beneath":
                    return self._count([strict.slot(*pair) for pair in body["names"]], int(body["most"]))
                case "mended":
                    self._mirror.mended()
                    return {}
                case "compare":
                    return {"differences": compare(self._mirror, body["items"])}
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise RemoteError(f"the peer made a request that makes no sense: {error}") from error
        return {"error": "the receiver's version does not know that request"}

    def _count(self, slots: list[Slot], most: int) -> dict[str, Any]:
        """How many names each of those is with all beneath it, up to `most`."""
        return {"numbers": [self._mirror.count(slot, most) for slot in slots]}

    def _compare_names(self, directories: list[tuple[FileId, str]]) -> dict[str, Any]:
        """All names of those directories where they are not what the sender has."""
        differing = []
        for directory, digest in directories:
            try:
                names = self._mirror.names(directory)
            except (OSError, KeyError):
                continue  # not here (any more): its facts are on their way
            if names_digest(names) == digest:
                continue
            differing.append((directory.text(), [name.decode("latin-1") for name in names]))
        return {"directories": differing}

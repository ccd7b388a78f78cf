"""What the receiver answers between epochs: names that only it has, and comparisons for `verify`.

Takes the bodies of requests, which come from a peer that is not trusted; gives bodies of answers. Reads the replica and
changes nothing, but for extras that the sender has looked at and does not have.
"""

from __future__ import annotations

from typing import Any

from replicator.errors import RemoteError
from replicator.mirror.mirror import Mirror
from replicator.model import Facts, FileId, Slot
from replicator.verify import compare

class Answers:
    """One replica's."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._extras: set[Slot] = set()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request. RemoteError if it makes no sense."""
        try:
            match body.get("op"):
                case "extras":
                    return self._list_extras([FileId.parse(text) for text in body["directories"]])
                case "compare":
                    return {"differences": compare(self._mirror, body["items"])}
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise RemoteError(f"the peer made a request that makes no sense: {error}") from error
        return {"error": "the receiver's version does not know that request"}

    def remove_extras(self, facts: Facts) -> None:
        """Remove what only the replica has, where the source was looked at and has nothing."""
        if not self._extras:
            return
        for fact in facts.slots:
            if fact.slot in self._extras:
                self._extras.discard(fact.slot)
                if fact.id is None:
                    self._mirror.remove_extra(fact.slot.parent, fact.slot.name)

    def _list_extras(self, directories: list[FileId]) -> dict[str, Any]:
        slots = []
        for directory in directories:
            try:
                names = self._mirror.extra_names(directory)
            except (OSError, KeyError):
                continue  # not here (any more): its facts are on their way
            slots += [Slot(directory, name) for name in names]
        self._extras.update(slots)
        return {"slots": [(slot.parent.text(), slot.name.decode("latin-1")) for slot in slots]}

"""What the receiver answers to the sender's questions: the bodies of Checked, read as what a stranger sent.

Takes JSON objects, gives values; RemoteError for everything else. A body with "error" answers nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from replicator.link import strict
from replicator.model import FileId


class Difference(NamedTuple):
    """One way in which the replica is not what the source is."""

    id: FileId
    kind: str
    """For people."""
    name: bytes | None
    """The name in the directory `id` that it is about; None if it is about `id` itself."""


def refusal(body: dict[str, Any]) -> str | None:
    """Why there is no answer; None if there is one."""
    return strict.sentence(strict.string(body["error"], "a sentence")) if "error" in body else None


def directories(body: dict[str, Any]) -> list[tuple[FileId, list[bytes]]]:
    """Directories with all names that the replica has in them."""
    found = []
    for entry in strict.array(body.get("directories"), "directories"):
        pair = strict.array(entry, "a directory and its names")
        if len(pair) != 2:
            strict.bad("a directory and its names", entry)
        found.append((strict.file_id(pair[0]), [strict.name(name) for name in strict.array(pair[1], "names")]))
    return found


def ids(body: dict[str, Any]) -> list[FileId]:
    """Inodes."""
    return [strict.file_id(id) for id in strict.array(body.get("ids"), "ids")]


def numbers(body: dict[str, Any], count: int) -> list[int]:
    """So many numbers."""
    found = [strict.number(value, "a number") for value in strict.array(body.get("numbers"), "numbers")]
    if len(found) != count:
        strict.bad(f"{count} numbers", body)
    return found


def differences(body: dict[str, Any]) -> list[Difference]:
    """What `verify` found."""
    found = []
    for entry in strict.array(body.get("differences"), "differences"):
        fields = strict.whole_object(entry, frozenset({"id", "kind", "name"}), "a difference")
        name = strict.name(fields["name"]) if "name" in fields else None
        found.append(Difference(strict.file_id(fields.get("id")), strict.reason(fields.get("kind")), name))
    return found

"""What the receiver answers to the sender's questions: the bodies of Checked, read as what a stranger sent.

Takes JSON objects, gives values; RemoteError for everything else. A body with "error" answers nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from replicator.blocks import Span, Verdict, read_verdict
from replicator.link import strict
from replicator.model import FileId

_FINDING = frozenset({"missing", "error", "kinds", "names", "to", "differ"})


@dataclass(frozen=True, slots=True)
class Finding:
    """In which ways the replica is not what one item of a question says."""

    missing: bool = False
    """It is not there, or not under any name that it should have."""
    error: str | None = None
    """Why the replica cannot tell."""
    kinds: tuple[str, ...] = ()
    """Of attributes; for people."""
    names: tuple[tuple[tuple[bytes, ...], str], ...] = ()
    """Paths beneath the directory that was asked about, and what is wrong with each."""
    verdict: Verdict | None = None
    """Of the content, if that was asked for and could be told."""


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


def findings(body: dict[str, Any], spans: Sequence[Span | None]) -> list[Finding]:
    """What was found of each item of a question; `spans` are the contents that were asked about."""
    entries = strict.array(body.get("found"), "findings")
    if len(entries) != len(spans):
        strict.bad("a finding for each item", len(entries))
    return [_finding(entry, span) for entry, span in zip(entries, spans, strict=True)]


def _finding(entry: Any, span: Span | None) -> Finding:
    tree = strict.whole_object(entry, _FINDING, "a finding")
    missing = strict.flag(tree.get("missing", False), "a flag")
    error = strict.reason(tree["error"]) if "error" in tree else None
    if span is None and ("to" in tree or "differ" in tree):
        strict.bad("nothing about content that was not asked for", entry)
    told = span is not None and not missing and error is None
    return Finding(
        missing,
        error,
        tuple(map(strict.reason, strict.array(tree.get("kinds", []), "kinds"))),
        tuple(map(_name, strict.array(tree.get("names", []), "names"))),
        read_verdict(span, tree) if span is not None and told else None,
    )


def _name(entry: Any) -> tuple[tuple[bytes, ...], str]:
    pair = strict.array(entry, "a path and what is wrong with it")
    if len(pair) != 2 or not pair[0]:
        strict.bad("a path and what is wrong with it", entry)
    return tuple(map(strict.name, strict.array(pair[0], "a path"))), strict.reason(pair[1])


def numbers(body: dict[str, Any], count: int) -> list[int]:
    """So many numbers."""
    found = [strict.number(value, "a number") for value in strict.array(body.get("numbers"), "numbers")]
    if len(found) != count:
        strict.bad(f"{count} numbers", body)
    return found

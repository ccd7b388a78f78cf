"""Reading a peer's JSON: every value is what it must be, or a RemoteError says what it was.

Takes parsed JSON, gives plain values. Numbers are below 2^63, so that every store and system call can take them.
Bytes that need not be text (names, link targets) travel as strings of which each character is one byte; values that
are mostly not text (xattrs) in base64.
"""

from __future__ import annotations

import binascii
import re
from typing import Any, NoReturn

import orjson

from replicator.errors import RemoteError
from replicator.link.frame import Buffer
from replicator.model import END_OF_FILE, Extent, FileId, Slot

NAME_MAX = 255
REASON_MAX = 4096
_SURE = 15 + 6
"""Characters of an id of which no number can have 16 digits."""
_ID = re.compile(r"\.".join(["(0|[1-9a-f][0-9a-f]{0,15})"] * 4)).fullmatch


def bad(what: str, value: object) -> NoReturn:
    """Raise the RemoteError for a value that is not `what`."""
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    raise RemoteError(f"the peer sent {shown} where the protocol has {what}")


def parse(payload: Buffer) -> Any:
    """The JSON value in a payload."""
    try:
        return orjson.loads(payload)
    except (orjson.JSONDecodeError, RecursionError):
        bad("a JSON value", bytes(payload[:40]))


def whole_object(value: Any, allowed: frozenset[str], what: str) -> dict[str, Any]:
    """A JSON object without keys that are not in `allowed`."""
    if not isinstance(value, dict):
        bad(what, value)
    if not value.keys() <= allowed:
        bad(what, sorted(value.keys() - allowed))
    return value


def array(value: Any, what: str) -> list[Any]:
    """A JSON array."""
    if not isinstance(value, list):
        bad(what, value)
    return value


def number(value: Any, what: str, low: int = 0, high: int = END_OF_FILE) -> int:
    """An integer, low <= value <= high."""
    if type(value) is not int or not low <= value <= high:
        bad(what, value)
    return value


def flag(value: Any, what: str) -> bool:
    """true or false."""
    if type(value) is not bool:
        bad(what, value)
    return value


def string(value: Any, what: str, most: int = 4096) -> str:
    """A string of at most `most` characters."""
    if type(value) is not str or len(value) > most:
        bad(what, value)
    return value


def sentence(text: str) -> str:
    """`text` as `reason()` takes it: what cannot be printed (or encoded) escaped, cut at 4096 characters."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text[:REASON_MAX]


def reason(value: Any) -> str:
    """A sentence for people; printable, so that a peer cannot drive a terminal."""
    text = string(value, "a sentence", REASON_MAX)
    if not text.isprintable():
        bad("a sentence", value)
    return text


def raw(value: Any, what: str, most: int) -> bytes:
    """1 to `most` bytes without NUL, from a string of which each character is one byte."""
    if type(value) is not str or not 1 <= len(value) <= most:
        bad(what, value)
    try:
        data = value.encode("latin-1")
    except UnicodeEncodeError:
        bad(what, value)
    if b"\0" in data:
        bad(what, value)
    return data


def name(value: Any) -> bytes:
    """One component of a path: never "", ".", "..", and without a slash, so that it cannot lead elsewhere."""
    data = raw(value, "a file name", NAME_MAX)
    if b"/" in data or data in (b".", b".."):
        bad("a file name", value)
    return data


def blob(value: Any, what: str, most: int) -> bytes:
    """Up to `most` bytes, from base64."""
    if type(value) is not str or len(value) > (most + 2) // 3 * 4:
        bad(what, value)
    try:
        data = binascii.a2b_base64(value, strict_mode=True)
    except (binascii.Error, ValueError):
        bad(what, value)
    if len(data) > most:
        bad(what, value)
    return data


def file_id(value: Any) -> FileId:
    """An id, in exactly the form that `FileId.text()` gives."""
    if type(value) is not str:
        bad("a file id", value)
    match = _ID(value)
    if match is None:
        bad("a file id", value)
    fs, root, ino, gen = match.groups()
    found = FileId(int(fs, 16), int(root, 16), int(ino, 16), int(gen, 16))
    if len(value) > _SURE and max(found) > END_OF_FILE:
        bad("a file id", value)
    return found


def slot(parent: Any, component: Any) -> Slot:
    """A slot of its two parts."""
    return Slot(file_id(parent), name(component))


def extents(value: Any) -> tuple[Extent, ...]:
    """Ranges from a flat array of offset, length, offset, length: ascending, not empty, not overlapping."""
    numbers = array(value, "ranges")
    if len(numbers) % 2:
        bad("ranges", value)
    found: list[Extent] = []
    last = 0
    for index in range(0, len(numbers), 2):
        offset = number(numbers[index], "ascending offsets", low=last)
        length = number(numbers[index + 1], "a range's length", low=1, high=END_OF_FILE - offset)
        found.append(Extent(offset, length))
        last = offset + length
    return tuple(found)

"""Answers about the kernel's types, remembered from one start to the next.

Takes the raw BTF; gives the same answers as `Btf`, from the cache if somebody has asked it the same of the same bytes.
To go through 100,000 types costs each start more than all else about the hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import xxhash

from replicator.capture import btf, cache
from replicator.capture.btf import Btf, Function, Member, Types

_KIND = "types"


class RememberedTypes:
    """Of one kernel and some modules."""

    def __init__(self, blobs: Mapping[str, bytes], directory: Path = cache.CACHE) -> None:
        """`blobs`: see `read_blobs`. BtfError, here or from a question, if they are malformed."""
        self._blobs = blobs
        content = xxhash.xxh3_128(Path(btf.__file__).read_bytes())  # other code may answer otherwise
        for module, blob in blobs.items():
            content.update(b"%d %d " % (len(module), len(blob)) + module.encode())
            content.update(blob)
        self._place = cache.place(directory, _KIND, content.hexdigest())
        self._known = _read(cache.kept(self._place))
        self._learnt = False
        self._btf: Btf | None = None
        if not self._known:
            self._types()

    def keep(self) -> None:
        """Write down what was asked, for the next; nothing if all of it was known."""
        if self._learnt:
            data = orjson.dumps(self._known)
            cache.keep(self._place, xxhash.xxh3_128_digest(data) + data)
            self._learnt = False

    def member(self, type_name: str, member: str) -> Member | None:
        """See Btf."""
        found = self._answer(f"member {type_name} {member}", lambda types: _members(types.member(type_name, member)))
        return None if found is None else Member(*found)

    def has_typedef(self, name: str) -> bool:
        """See Btf."""
        return bool(self._answer(f"typedef {name}", lambda types: types.has_typedef(name)))

    def struct(self, name: str) -> int | None:
        """See Btf."""
        found: int | None = self._answer(f"struct {name}", lambda types: types.struct(name))
        return found

    def tracepoint(self, name: str) -> tuple[str, ...] | None:
        """See Btf."""
        found = self._answer(f"tracepoint {name}", lambda types: types.tracepoint(name))
        return None if found is None else tuple(found)

    def enumerator(self, name: str) -> int | None:
        """See Btf."""
        found: int | None = self._answer(f"enumerator {name}", lambda types: types.enumerator(name))
        return found

    def function(self, name: str) -> Function | None:
        """See Btf."""
        found = self._answer(f"function {name}", lambda types: _functions(types.function(name)))
        return None if found is None else Function(found[0], found[1], tuple(found[2]), found[3])

    def _answer(self, question: str, ask: Callable[[Types], Any]) -> Any:
        if question not in self._known:
            self._known[question] = ask(self._types())
            self._learnt = True
        return self._known[question]

    def _types(self) -> Btf:
        if self._btf is None:
            self._btf = Btf.of_blobs(self._blobs)
        return self._btf


def _members(found: Member | None) -> tuple[int, str | None] | None:
    return None if found is None else (found.offset, found.ctype)


def _functions(found: Function | None) -> tuple[int, str, tuple[str, ...], str] | None:
    return None if found is None else (found.id, found.module, found.arguments, found.result)


def _read(kept: bytes | None) -> dict[str, Any]:
    """Nothing, if it is damaged."""
    if kept is None or len(kept) < 16 or xxhash.xxh3_128_digest(kept[16:]) != kept[:16]:
        return {}
    known: dict[str, Any] = orjson.loads(kept[16:])
    return known

"""The kernel's own description of its types (BTF), read from /sys/kernel/btf.

Takes raw BTF, vmlinux and those of modules on top of it; gives offsets and types of struct members, and the argument
types of functions and raw tracepoints. Does not interpret what it is not asked about. Offsets and sizes are bytes.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

BTF_DIRECTORY = Path("/sys/kernel/btf")

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF = 1, 2, 3, 4, 5, 6, 7, 8
_VOLATILE, _CONST, _RESTRICT, _FUNC, _FUNC_PROTO, _DATASEC, _TYPE_TAG, _ENUM64 = 9, 10, 11, 12, 13, 15, 18, 19
_TRANSPARENT = frozenset({_VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
# 32-bit words of a type, by kind (five bits): a fixed number, and a number for each of its vlen entries.
_FIXED = [3 + {_INT: 1, _ARRAY: 3, 14: 1, 17: 1}.get(kind, 0) for kind in range(32)]
_EACH = [{_STRUCT: 3, _UNION: 3, _ENUM: 2, _FUNC_PROTO: 2, _DATASEC: 3, _ENUM64: 3}.get(kind, 0) for kind in range(32)]
_PREFIX = {_STRUCT: "struct ", _UNION: "union ", _ENUM: "enum ", _ENUM64: "enum "}


Numbers = npt.NDArray[np.integer[Any]]


class BtfError(ValueError):
    """The bytes are not BTF that this module understands."""


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member lies in its struct, and as which C type it is read; None for what is no number or pointer."""

    offset: int
    ctype: str | None


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the kernel."""

    id: int
    """The id of its type, in the BTF of where it is."""
    module: str
    """The module that it is in; empty for the kernel itself."""
    arguments: tuple[str, ...]
    """Their types as C spells them, without qualifiers."""
    result: str


class _Section:
    """One BTF blob; `first_id` and `first_string` are where its type ids and string offsets start."""

    def __init__(self, blob: bytes, first_id: int, first_string: int, module: str = "") -> None:
        self.module = module
        if len(blob) < 24:
            raise BtfError("BTF is too short for its header")
        magic, _version, _flags, header, type_off, type_len, string_off, string_len = struct.unpack_from(
            "<HBBIIIII", blob
        )
        if magic != 0xEB9F or header + max(type_off + type_len, string_off + string_len) > len(blob):
            raise BtfError("BTF has a wrong header")
        self.words = memoryview(blob)[header + type_off : header + type_off + type_len].cast("I")
        self.strings = blob[header + string_off : header + string_off + string_len]
        self.first_id = first_id
        self.first_string = first_string
        self.positions: list[int] = []
        self._named: dict[int, tuple[Numbers, Numbers]] = {}
        self._offsets: dict[str, int] = {}
        words, position, end, add = self.words, 0, len(self.words), self.positions.append
        while position < end:
            add(position)
            info = words[position + 1]
            kind = info >> 24 & 0x1F
            position += _FIXED[kind] + _EACH[kind] * (info & 0xFFFF)
        if position != end:
            raise BtfError("BTF's last type is cut short")

    def offset_of(self, name: str) -> int:
        """Where in the strings a name is (each is there once); -1 if it is not."""
        known = self._offsets.get(name)
        if known is None:
            known = self._offsets[name] = self._find(name.encode() + b"\0")
        return known

    def _find(self, ended: bytes) -> int:
        if self.strings.startswith(ended):  # a module's: vmlinux's begin with the empty one
            return 0
        found = self.strings.find(b"\0" + ended)
        return found + 1 if found >= 0 else -1

    def named(self, kind: int, offset: int) -> list[int]:
        """The positions of all types of one kind whose name is at an offset in the strings."""
        positions, names = self._of_kind(kind)
        return [int(position) for position in positions[names == offset]]

    def _of_kind(self, kind: int) -> tuple[Numbers, Numbers]:
        """The positions of all types of one kind, and the offsets of their names."""
        known = self._named.get(kind)
        if known is None:
            positions, words = self._numbers
            positions = positions[words[positions + 1] >> 24 & 0x1F == kind]
            known = self._named[kind] = positions, words[positions]
        return known

    @cached_property
    def _numbers(self) -> tuple[Numbers, Numbers]:
        """All positions, and all words."""
        return np.array(self.positions, np.intp), np.frombuffer(self.words, np.uint32)

    def id_at(self, position: int) -> int:
        """The id of the type at a position."""
        return self.first_id + bisect_left(self.positions, position)

    @cached_property
    def enumerators(self) -> dict[int, int]:
        """The value of each enumerator, by the offset of its name."""
        found: dict[int, int] = {}
        words = self.words
        for kind in (_ENUM, _ENUM64):
            width = _EACH[kind]
            for position in self._of_kind(kind)[0].tolist():
                count = words[position + 1] & 0xFFFF
                for entry in range(position + 3, position + 3 + width * count, width):
                    value = words[entry + 1] | (words[entry + 2] << 32 if kind == _ENUM64 else 0)
                    found.setdefault(words[entry], value)
        return found


def read_blobs(modules: tuple[str, ...] = (), directory: Path = BTF_DIRECTORY) -> dict[str, bytes]:
    """The running kernel's, under "", and those of modules. Modules that are built in, or not loaded, have no file and
    are passed over. OSError if the kernel has none."""
    blobs = {"": (directory / "vmlinux").read_bytes()}
    for module in modules:
        path = directory / module
        if path.exists():
            blobs[module] = path.read_bytes()
    return blobs


class Types(Protocol):
    """What can be asked of a kernel's types: see Btf."""

    def member(self, type_name: str, member: str) -> Member | None:
        """See Btf."""

    def has_typedef(self, name: str) -> bool:
        """See Btf."""

    def struct(self, name: str) -> int | None:
        """See Btf."""

    def tracepoint(self, name: str) -> tuple[str, ...] | None:
        """See Btf."""

    def enumerator(self, name: str) -> int | None:
        """See Btf."""

    def function(self, name: str) -> Function | None:
        """See Btf."""

    def keep(self) -> None:
        """No more is asked for now: what was found out can be written down."""


class Btf:
    """The types of vmlinux and of the modules that were added. BtfError if the blob is malformed."""

    def __init__(self, vmlinux: bytes) -> None:
        self._sections = [_Section(vmlinux, 1, 0)]

    @classmethod
    def of_kernel(cls, modules: tuple[str, ...] = (), directory: Path = BTF_DIRECTORY) -> Btf:
        """Read the running kernel's. OSError if vmlinux has none; BtfError if it is malformed."""
        return cls.of_blobs(read_blobs(modules, directory))

    @classmethod
    def of_blobs(cls, blobs: Mapping[str, bytes]) -> Btf:
        """Of what `read_blobs` read."""
        btf = cls(blobs[""])
        for module, blob in blobs.items():
            if module:
                btf.add(blob, module)
        return btf

    def add(self, blob: bytes, module: str) -> None:
        """Add a module's (split) BTF. Modules do not refer to one another, only to vmlinux."""
        base = self._sections[0]
        section = _Section(blob, 1 + len(base.positions), len(base.strings), module)
        self._sections.append(section)

    def member(self, type_name: str, member: str) -> Member | None:
        """A member of a struct, union or typedef of one; members of anonymous parts count. None if there is none.

        BtfError for a bit-field: it has no address.
        """
        for kind in (_STRUCT, _UNION, _TYPEDEF):
            where = self._handle(kind, type_name)
            if where is not None:
                return self._find(where, self._resolve(where), member)
        return None

    def has_typedef(self, name: str) -> bool:
        """Whether there is a typedef of this name."""
        return self._handle(_TYPEDEF, name) is not None

    def struct(self, name: str) -> int | None:
        """The id of the first struct of this name, if vmlinux has it."""
        where = self._handle(_STRUCT, name)
        return None if where is None or where >> 32 else where

    def tracepoint(self, name: str) -> tuple[str, ...] | None:
        """The types of a raw tracepoint's arguments, as C spells them, without qualifiers. None if there is none."""
        where = self._handle(_TYPEDEF, f"btf_trace_{name}")
        if where is None:
            return None
        section, position = self._at(where, self._resolve(where))  # a pointer
        _, arguments = self._prototype(where, self._resolve(where, section.words[position + 2]))
        return arguments[1:]  # the first is the probe's private data

    def enumerator(self, name: str) -> int | None:
        """The value of an enumerator of vmlinux or of an added module, without sign. None if there is none."""
        base = self._sections[0]
        for section in self._sections:
            for owner in (section, base):
                offset = owner.offset_of(name)
                if offset >= 0 and (value := section.enumerators.get(owner.first_string + offset)) is not None:
                    return value
        return None

    def function(self, name: str) -> Function | None:
        """A function of vmlinux or of an added module. None if there is none, or several different ones."""
        found: Function | None = None
        for number, section in enumerate(self._sections):
            for position in self._positions(section, _FUNC, name):
                if found is not None:
                    return None
                id = section.id_at(position)
                result, arguments = self._prototype(number << 32 | id, section.words[position + 2])
                found = Function(id, section.module, arguments, result)
        return found

    def keep(self) -> None:
        """Nothing: it is as quick to ask the next time."""

    def _prototype(self, where: int, type_id: int) -> tuple[str, tuple[str, ...]]:
        section, position = self._at(where, type_id)
        words = section.words
        count = words[position + 1] & 0xFFFF
        arguments = tuple(self._spell(where, words[position + 4 + 2 * i]) for i in range(count))
        return self._spell(where, words[position + 2]), arguments

    # A type is found by a handle: its id, plus the number of its section, because ids of modules overlap.

    def _handle(self, kind: int, name: str) -> int | None:
        """The first type of that kind and name; None if there is none."""
        for number, section in enumerate(self._sections):
            for position in self._positions(section, kind, name):
                return number << 32 | section.id_at(position)
        return None

    def _positions(self, section: _Section, kind: int, name: str) -> list[int]:
        """All types of that kind and name in a section; a module's may be named by vmlinux's strings."""
        offsets = {
            owner.first_string + at for owner in (section, self._sections[0]) if (at := owner.offset_of(name)) >= 0
        }
        return [position for offset in offsets for position in section.named(kind, offset)]

    def _string(self, section: _Section, offset: int) -> str:
        strings, start = section.strings, offset - section.first_string
        if start < 0:
            strings, start = self._sections[0].strings, offset
        return strings[start : strings.index(b"\0", start)].decode()

    def _at(self, where: int, type_id: int) -> tuple[_Section, int]:
        section = self._sections[where >> 32]
        if type_id < section.first_id:
            section = self._sections[0]
        return section, section.positions[type_id - section.first_id]

    def _kind(self, where: int, type_id: int) -> int:
        if type_id == 0:
            return 0  # void
        section, position = self._at(where, type_id)
        return section.words[position + 1] >> 24 & 0x1F

    def _resolve(self, where: int, type_id: int | None = None) -> int:
        """The id behind typedefs and qualifiers."""
        found = where & 0xFFFFFFFF if type_id is None else type_id
        while (kind := self._kind(where, found)) == _TYPEDEF or kind in _TRANSPARENT:
            section, position = self._at(where, found)
            found = section.words[position + 2]
        return found

    def _find(self, where: int, type_id: int, member: str) -> Member | None:
        section, position = self._at(where, type_id)
        words = section.words
        info = words[position + 1]
        if (info >> 24 & 0x1F) not in (_STRUCT, _UNION):
            return None
        for entry in range(position + 3, position + 3 + 3 * (info & 0xFFFF), 3):
            bits, width = words[entry + 2], 0
            if info >> 31:  # the struct has bit-fields: eight bits of width in front
                bits, width = bits & 0xFFFFFF, bits >> 24
            name = self._string(section, words[entry])
            if name == member:
                if width or bits % 8:
                    raise BtfError(f"{member} is a bit-field and has no address")
                return Member(bits // 8, self._ctype(where, words[entry + 1]))
            if not name:
                inner = self._find(where, self._resolve(where, words[entry + 1]), member)
                if inner is not None:
                    return Member(bits // 8 + inner.offset, inner.ctype)
        return None

    def _ctype(self, where: int, type_id: int) -> str | None:
        resolved = self._resolve(where, type_id)
        kind = self._kind(where, resolved)
        if kind == _PTR:
            return "void *"
        section, position = self._at(where, resolved)
        if kind == _STRUCT and section.words[position + 1] & 0xFFFF == 1:  # a number that C cannot mix with others
            return self._ctype(where, section.words[position + 4])
        if kind not in (_INT, _ENUM, _ENUM64):
            return None
        size = section.words[position + 2]
        if kind == _INT:
            signed = section.words[position + 3] >> 24 & 1
        else:
            signed = section.words[position + 1] >> 31
        return f"{'s' if signed else 'u'}{8 * size}" if size in (1, 2, 4, 8) else None

    def _spell(self, where: int, type_id: int) -> str:
        while self._kind(where, type_id) in _TRANSPARENT:
            section, position = self._at(where, type_id)
            type_id = section.words[position + 2]
        kind = self._kind(where, type_id)
        if kind == 0:
            return "void"
        section, position = self._at(where, type_id)
        if kind == _PTR:
            inner = self._spell(where, section.words[position + 2])
            return f"{inner}*" if inner.endswith("*") else f"{inner} *"
        if kind == _FWD:
            return ("union " if section.words[position + 1] >> 31 else "struct ") + self._string(
                section, section.words[position]
            )
        return _PREFIX.get(kind, "") + self._string(section, section.words[position])

"""BTF made by hand, for the tests of what reads it."""

from __future__ import annotations

import struct

INT, PTR, STRUCT, UNION, ENUM, TYPEDEF, CONST, FUNC, FUNC_PROTO = 1, 2, 4, 5, 6, 8, 10, 12, 13


class Maker:
    """Writes BTF. Types are numbered in the order they are added, from `first` on."""

    def __init__(self, first: int = 1, string_base: int = 0) -> None:
        self.types = b""
        self.next = first
        self.string_base = string_base
        self.strings = b"" if string_base else b"\0"

    def name(self, text: str) -> int:
        if not text:
            return 0
        offset = self.string_base + len(self.strings)
        self.strings += text.encode() + b"\0"
        return offset

    def add(self, kind: int, name: str, third: int, *words: int, count: int = 0, flag: int = 0) -> int:
        self.types += struct.pack(
            f"<{3 + len(words)}I", self.name(name), flag << 31 | kind << 24 | count, third, *words
        )
        self.next += 1
        return self.next - 1

    def number(self, name: str, size: int, signed: bool = False) -> int:
        return self.add(INT, name, size, int(signed) << 24 | 8 * size)

    def record(self, name: str, size: int, *members: tuple[str, int, int], kind: int = STRUCT, flag: int = 0) -> int:
        words = [word for member, type_id, bits in members for word in (self.name(member), type_id, bits)]
        return self.add(kind, name, size, *words, count=len(members), flag=flag)

    def tracepoint(self, name: str, *arguments: int) -> None:
        void_pointer = self.add(PTR, "", 0)
        words = [word for type_id in (void_pointer, *arguments) for word in (0, type_id)]
        proto = self.add(FUNC_PROTO, "", 0, *words, count=1 + len(arguments))
        self.add(TYPEDEF, f"btf_trace_{name}", self.add(PTR, "", proto))

    def function(self, name: str, result: int, *arguments: tuple[str, int]) -> int:
        words = [word for argument, type_id in arguments for word in (self.name(argument), type_id)]
        return self.add(FUNC, name, self.add(FUNC_PROTO, "", result, *words, count=len(arguments)))

    def blob(self) -> bytes:
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings))
        return header + self.types + self.strings


def kernel() -> Maker:
    maker = Maker()
    u32 = maker.number("unsigned int", 4)
    s64 = maker.number("long long int", 8, signed=True)
    loff = maker.add(TYPEDEF, "loff_t", s64)
    inner = maker.record("", 16, ("index", loff, 0), ("share", u32, 64))
    either = maker.record("", 16, ("", inner, 0), ("alone", u32, 0), kind=UNION)
    folio = maker.record("folio", 32, ("flags", u32, 0), ("", either, 64), ("inner", inner, 128))
    pointer = maker.add(PTR, "", maker.add(CONST, "", folio))
    maker.record("file", 16, ("f_folio", pointer, 64), ("bits", u32, 3 << 24 | 96), flag=1)
    maker.add(TYPEDEF, "file_t", folio)
    maker.add(ENUM, "state", 4, maker.name("I_NEW"), 1, maker.name("I_BAD"), 0xFFFFFFFF, count=2)
    maker.tracepoint("folio_made", pointer, loff)
    maker.function("vfs_write", s64, ("folio", pointer), ("position", loff))
    return maker

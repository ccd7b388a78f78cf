"""What the compiler made of the eBPF sources: instructions and descriptions of maps, nothing that the kernel knows yet.

Takes and gives plain values; an object can be written down as bytes and read back, so that a kernel's programs are
compiled once. An instruction that loads a map's address carries the map's index in `maps` instead of a descriptor.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import orjson
import xxhash

INSTRUCTION = 8
"""Bytes of one eBPF instruction."""
LOAD_ADDRESS = 0x18
"""The opcode that loads 64 bits, in two instructions; with `MAP_REFERENCE` in it, a map's address."""
MAP_REFERENCE = 1

_MAGIC = b"rsyncfs programs 1\n"
_CHECKSUM = struct.Struct("<Q")  # of all that follows
_LENGTH = struct.Struct("<Q")  # bytes of the description


class MapSpec(NamedTuple):
    """A map as bpf(2) makes it; sizes in bytes."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Object:
    """Programs by the name of their function, and the maps that they share."""

    maps: tuple[MapSpec, ...]
    programs: Mapping[str, bytes]

    def dump(self) -> bytes:
        """All of it as bytes."""
        described = orjson.dumps(
            {
                "maps": [list(spec) for spec in self.maps],
                "programs": [[name, len(code)] for name, code in self.programs.items()],
            }
        )
        body = _LENGTH.pack(len(described)) + described + b"".join(self.programs.values())
        return _MAGIC + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body)) + body

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Read `dump()` back. ValueError for anything else."""
        start = len(_MAGIC) + _CHECKSUM.size
        if not data.startswith(_MAGIC) or len(data) < start + _LENGTH.size:
            raise ValueError("not an object of compiled programs")
        body = data[start:]
        if (xxhash.xxh3_64_intdigest(body),) != _CHECKSUM.unpack_from(data, len(_MAGIC)):
            raise ValueError("an object of compiled programs is damaged")
        at = _LENGTH.size + _LENGTH.unpack_from(body)[0]
        described = orjson.loads(body[_LENGTH.size : at])
        programs: dict[str, bytes] = {}
        for name, size in described["programs"]:
            programs[name] = body[at : at + size]
            at += size
        return cls(tuple(MapSpec(*fields) for fields in described["maps"]), programs)


def relocate(code: bytes, descriptors: Sequence[int]) -> bytes:
    """`code` with the index of each map that it refers to replaced by `descriptors[index]`."""
    return _replaced(code, dict(enumerate(descriptors)))


def generalise(code: bytes, descriptors: Sequence[int]) -> bytes:
    """The other way round. KeyError if `code` refers to a map that is not among `descriptors`."""
    return _replaced(code, {descriptor: index for index, descriptor in enumerate(descriptors)})


def _replaced(code: bytes, numbers: Mapping[int, int]) -> bytes:
    result = bytearray(code)
    at = 0
    while at < len(result):
        wide = result[at] == LOAD_ADDRESS
        if wide and result[at + 1] >> 4 == MAP_REFERENCE:
            (number,) = struct.unpack_from("<i", result, at + 4)
            struct.pack_into("<i", result, at + 4, numbers[number])
        at += INSTRUCTION * (2 if wide else 1)
    return bytes(result)

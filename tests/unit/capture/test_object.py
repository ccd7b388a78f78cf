"""Compiled programs as bytes and back."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.capture.object import MapSpec, Object, generalise, relocate

MAPS = st.builds(
    MapSpec,
    st.text("abc_", min_size=1, max_size=20),
    *(st.integers(0, 2**31 - 1) for _ in range(5)),
)
CODE = st.lists(st.integers(0, 2**64 - 1).filter(lambda word: word & 0xFF != 0x18), max_size=20).map(
    lambda words: struct.pack(f"<{len(words)}Q", *words)
)
OBJECTS = st.builds(
    Object, st.lists(MAPS, max_size=5).map(tuple), st.dictionaries(st.text("xyz_", min_size=1), CODE, max_size=5)
)


@given(OBJECTS)
def test_what_was_written_down_is_read_back(made: Object) -> None:
    assert Object.load(made.dump()) == made


@given(OBJECTS, st.data())
def test_a_damaged_one_is_noticed(made: Object, data: st.DataObject) -> None:
    whole = made.dump()
    at = data.draw(st.integers(0, len(whole) - 1))
    harmed = bytearray(whole)
    harmed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="object of compiled programs"):
        Object.load(bytes(harmed))
    with pytest.raises(ValueError, match="object of compiled programs"):
        Object.load(whole[:at])


def load_of(number: int) -> bytes:
    """A 64-bit load of a map's address into register 1: two instructions."""
    return struct.pack("<BBhi", 0x18, 0x11, 0, number) + bytes(8)


def test_maps_are_referred_to_by_their_index() -> None:
    plain = struct.pack("<BBhi", 0x18, 0x01, 0, 7) + struct.pack("<BBhi", 0, 0, 0, 7)  # the number 7, no map
    code = load_of(1) + plain + load_of(0)
    assert relocate(code, [40, 41]) == load_of(41) + plain + load_of(40)
    assert generalise(relocate(code, [40, 41]), [40, 41]) == code
    with pytest.raises(KeyError):
        generalise(load_of(99), [40, 41])

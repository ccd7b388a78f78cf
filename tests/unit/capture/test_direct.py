"""Calls that are aimed at a function of the kernel."""

from __future__ import annotations

import struct

from replicator.capture.btf import Btf
from replicator.capture.direct import CALL, Cast, aimed, described
from tests.unit.capture.made_btf import Maker

CAST = Cast(function=70000, type=157)


def instruction(opcode: int, registers: int, number: int) -> bytes:
    return struct.pack("<BBhi", opcode, registers, 0, number)


def test_only_the_agreed_call_is_aimed() -> None:
    helper, wide = instruction(0x85, 0, 113), instruction(0x18, 0x01, CALL) + instruction(0x85, 0, CALL)
    code = helper + wide + instruction(0x85, 0, CALL) + instruction(0xB7, 0, CALL)
    assert aimed(code, CAST) == helper + wide + instruction(0x85, 0x20, 70000) + instruction(0xB7, 0, CALL)


def test_it_is_described_where_both_types_are() -> None:
    maker = Maker()
    number = maker.number("long long int", 8, signed=True)
    assert described(Btf(maker.blob())) is None, "an older kernel"
    function = maker.function("bpf_rdonly_cast", 0, ("obj__ign", number))
    assert described(Btf(maker.blob())) is None
    struct_id = maker.record("timespec64", 16, ("tv_sec", number, 0))
    assert described(Btf(maker.blob())) == Cast(function, struct_id)

"""Reading the kernel's memory by plain loads, where the kernel lets programs do so.

A program may load from wherever it likes once bpf_rdonly_cast() (Linux 6.2) has said that something lies there: the
verifier puts a move in place of that call, and a fault in such a load yields 0, as it does in bpf_probe_read_kernel(),
which is a call that stays. The sources have both (READ in ebpf/compat.h); this tells which is to be compiled.
"""

from __future__ import annotations

import os
import struct
from typing import Final, NamedTuple

from replicator.capture import bpf
from replicator.capture.btf import Types
from replicator.capture.object import INSTRUCTION, LOAD_ADDRESS

CALL: Final = 0x7CA57
"""What the compiler calls, as the number of a helper that no kernel has: the loader puts the function there."""

_FUNCTION: Final = "bpf_rdonly_cast"
_STRUCT: Final = "timespec64"  # begins with a number of 64 bits, on every kernel
_CALL, _HELPER, _KERNEL_FUNCTION = 0x85, 0, 2
_TRIAL: Final = bytes.fromhex("7911000000000000 b702000000000000 8500000000000000 6900000000000000") + bpf.RETURN_ZERO
"""r1 = the first argument; r2 = a type; the call; r0 = 16 bits of what is there; and the end."""


class Cast(NamedTuple):
    """Of a kernel that has it, in the BTF of vmlinux."""

    function: int
    """bpf_rdonly_cast's id."""
    type: int
    """The id of a struct that begins with a number of 64 bits."""


def described(types: Types) -> Cast | None:
    """What the kernel's types say of it; None if nothing."""
    function, type = types.function(_FUNCTION), types.struct(_STRUCT)
    if function is None or function.module or type is None:
        return None
    return Cast(function.id, type)


def offered(types: Types) -> Cast | None:
    """The same, if the kernel has loaded a program with it."""
    cast = described(types)
    if cast is None:
        return None
    code = bytearray(_TRIAL)
    struct.pack_into("<i", code, INSTRUCTION + 4, cast.type)
    struct.pack_into("<i", code, 2 * INSTRUCTION + 4, CALL)
    try:
        os.close(bpf.load_program(bpf.PROGRAM_RAW_TRACEPOINT, aimed(bytes(code), cast), "rsyncfs_try"))
    except OSError:
        return None
    return cast


def aimed(code: bytes, cast: Cast) -> bytes:
    """`code` with the function in place of each `CALL`."""
    result = bytearray(code)
    at = 0
    while at < len(result):
        helper = result[at] == _CALL and result[at + 1] >> 4 == _HELPER
        if helper and struct.unpack_from("<i", result, at + 4) == (CALL,):
            result[at + 1] |= _KERNEL_FUNCTION << 4
            struct.pack_into("<i", result, at + 4, cast.function)
        at += INSTRUCTION * (2 if result[at] == LOAD_ADDRESS else 1)
    return bytes(result)

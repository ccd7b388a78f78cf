"""The few bpf(2) calls that BCC does not offer: may this process use BPF at all, and what did the kernel count.

Takes descriptors and BTF; gives answers, and EnvironmentFault's sentences for what is refused. Loads nothing that
stays.
"""

from __future__ import annotations

import ctypes
import errno
import os

from replicator.capture.btf import Btf

_MAP_CREATE, _MAP_LOOKUP, _PROG_LOAD, _OBJ_GET_INFO_BY_FD, _RAW_TRACEPOINT_OPEN = 0, 1, 5, 15, 17
_MAP_TYPE_RINGBUF, _PROG_TYPE_TRACING, _TRACE_FEXIT = 27, 26, 25
_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
# mov r0, 0; exit
_RETURN_ZERO = bytes.fromhex("b7000000000000009500000000000000")

_libc = ctypes.CDLL(None, use_errno=True)


def supported_machine() -> bool:
    """Whether this processor type's system call numbers are known."""
    return os.uname().machine in _SYSCALL


def bpf(command: int, attributes: ctypes.Array[ctypes.c_uint64]) -> int:
    """bpf(2) with `union bpf_attr` as 64-bit words. OSError if the kernel refuses; descriptors are the caller's."""
    result: int = _libc.syscall(
        _SYSCALL[os.uname().machine], command, ctypes.byref(attributes), ctypes.sizeof(attributes)
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _attributes(*words: int) -> ctypes.Array[ctypes.c_uint64]:
    return (ctypes.c_uint64 * 16)(*words)


def lookup(descriptor: int, key: bytes, size: int) -> bytes | None:
    """The `size` bytes of a key's value in a map; None if it is not there."""
    value = ctypes.create_string_buffer(size)
    held = ctypes.create_string_buffer(key, len(key))
    try:
        # map_fd; key; value
        bpf(_MAP_LOOKUP, _attributes(descriptor, ctypes.addressof(held), ctypes.addressof(value)))
    except FileNotFoundError:
        return None
    return value.raw


def bpf_refusal() -> str | None:
    """Why this process may not use BPF, as one sentence with the cure; None if it may make a ring buffer map."""
    if os.geteuid() != 0:
        return "eBPF needs root: run this as root, for example with sudo"
    if not supported_machine():
        return f"the processor type {os.uname().machine} is not supported: use x86_64 or aarch64"
    try:
        # map_type, key_size; value_size, max_entries
        os.close(bpf(_MAP_CREATE, _attributes(_MAP_TYPE_RINGBUF, os.sysconf("SC_PAGE_SIZE") << 32)))
    except OSError as fault:
        if fault.errno == errno.EPERM:
            return (
                "the kernel refuses eBPF to this process although it is root: run it outside a container, or give it "
                "CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN, and check kernel lockdown"
            )
        if fault.errno == errno.ENOSYS:
            return "this kernel was built without eBPF: use one with CONFIG_BPF_SYSCALL=y"
        if fault.errno == errno.EINVAL:
            return "this kernel has no BPF ring buffer: use Linux 5.8 or newer"
        return f"the kernel cannot make a BPF ring buffer ({fault.strerror}): free some memory or raise the limit on it"
    return None


def trampoline_refusal(types: Btf) -> str | None:
    """Why BPF trampolines (fentry, fexit) are not to be had; None if one could be attached, and was removed again."""
    function = types.function("vfs_write")
    if function is None:
        return "the kernel's type information does not name vfs_write"
    code = ctypes.create_string_buffer(_RETURN_ZERO)
    gpl = ctypes.create_string_buffer(b"GPL")
    # union bpf_attr of BPF_PROG_LOAD: prog_type, insn_cnt; insns; license; ...; expected_attach_type is the 18th and
    # attach_btf_id the 28th word of 32 bits
    attributes = _attributes(_PROG_TYPE_TRACING | 2 << 32, ctypes.addressof(code), ctypes.addressof(gpl))
    attributes[8] |= _TRACE_FEXIT << 32
    attributes[13] |= function << 32
    try:
        program = bpf(_PROG_LOAD, attributes)
    except OSError as fault:
        return f"the kernel refuses to load one ({fault.strerror})"
    try:
        os.close(bpf(_RAW_TRACEPOINT_OPEN, _attributes(0, program)))
    except OSError as fault:
        return f"the kernel refuses to attach one ({fault.strerror})"
    finally:
        os.close(program)
    return None


def recursion_member(types: Btf) -> int | None:
    """Where `recursion_misses` finds its count in what the kernel tells of a program. None if it does not count."""
    member = types.member("bpf_prog_info", "recursion_misses")
    return None if member is None else member.offset


def recursion_misses(program: int, offset: int | None) -> int:
    """How often the kernel skipped a program because it was running already. 0 where the kernel does not count."""
    if offset is None:
        return 0
    info = (ctypes.c_uint64 * 64)()
    # bpf_fd, info_len; info
    attributes = _attributes(program | ctypes.sizeof(info) << 32, ctypes.addressof(info))
    bpf(_OBJ_GET_INFO_BY_FD, attributes)
    return info[offset // 8]

"""bpf(2): maps, programs, links, and what the kernel says of them.

Takes numbers, bytes and descriptors; gives descriptors (the caller's to close) and numbers. What the kernel refuses is
an OSError; whether this process may use BPF at all is told by `bpf_refusal`, as a sentence with the cure.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from replicator.capture.btf import Function, Types

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY = 0, 1, 2, 3, 4
_PROG_LOAD, _OBJ_PIN, _OBJ_GET, _PROG_TEST_RUN, _OBJ_GET_INFO_BY_FD, _RAW_TRACEPOINT_OPEN = 5, 6, 7, 10, 15, 17
_BTF_GET_FD_BY_ID, _BTF_GET_NEXT_ID, _LINK_CREATE = 19, 23, 28
_MAP_TYPE_RINGBUF: Final = 27
_RUN_ON_CPU: Final = 1
_PERF_EVENT: Final = 41
"""How a link is attached to a perf event."""
_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}.get(os.uname().machine)

MAP_ARRAY: Final = 2
MMAPABLE: Final = 1 << 10
PROGRAM_KPROBE: Final = 2
PROGRAM_RAW_TRACEPOINT: Final = 17
PROGRAM_TRACING: Final = 26
FENTRY: Final = 24
FEXIT: Final = 25

RETURN_ZERO: Final = bytes.fromhex("b7000000000000009500000000000000")
"""The shortest program: r0 = 0; exit."""
_LOG_BYTES = 1 << 24
_SHORT_NAME = 15

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(OSError):
    """The kernel does not load a program; `log` is what its verifier said."""

    def __init__(self, code: int, log: str) -> None:
        super().__init__(code, os.strerror(code))
        self.log = log


class Info(NamedTuple):
    """What the kernel counts of a program; 0 where it does not."""

    skipped: int
    """Times that it was not run because it was running already on the same processor."""
    verified: int
    """Instructions that the verifier looked at, over all paths."""


def supported_machine() -> bool:
    """Whether this processor type's system call numbers are known."""
    return _SYSCALL is not None


def _bpf(command: int, attributes: bytes) -> int:
    """bpf(2) with `union bpf_attr`, padded with zeros. OSError if the kernel refuses."""
    if _SYSCALL is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    padded = ctypes.create_string_buffer(attributes, max(len(attributes), 128))
    result: int = _libc.syscall(_SYSCALL, command, padded, len(padded))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _short(name: str) -> bytes:
    return name.encode()[:_SHORT_NAME]


# ---------------------------------------------------------------------- maps


def create_map(kind: int, key_size: int, value_size: int, entries: int, flags: int, name: str) -> int:
    """A map's descriptor. The kernel keeps the first 15 characters of `name`."""
    return _bpf(_MAP_CREATE, struct.pack("=IIIIIII16s", kind, key_size, value_size, entries, flags, 0, 0, _short(name)))


def _element(descriptor: int, key: bytes | None, other: ctypes.Array[ctypes.c_char] | None) -> tuple[bytes, object]:
    given = None if key is None else ctypes.create_string_buffer(key, len(key))
    attributes = struct.pack(
        "=IIQQQ",
        descriptor,
        0,
        0 if given is None else ctypes.addressof(given),
        0 if other is None else ctypes.addressof(other),
        0,
    )
    return attributes, given  # which must live as long as its address is in use


def lookup(descriptor: int, key: bytes, size: int) -> bytes | None:
    """The `size` bytes of a key's value (for a map by processor: of all of them); None if it is not there."""
    value = ctypes.create_string_buffer(size)
    attributes, _keep = _element(descriptor, key, value)
    try:
        _bpf(_MAP_LOOKUP, attributes)
    except FileNotFoundError:
        return None
    return value.raw


def update(descriptor: int, key: bytes, value: bytes) -> None:
    """Set a key's value."""
    given = ctypes.create_string_buffer(value, len(value))
    attributes, _keep = _element(descriptor, key, given)
    _bpf(_MAP_UPDATE, attributes)


def delete(descriptor: int, key: bytes) -> bool:
    """Remove a key; false if it was not there."""
    attributes, _keep = _element(descriptor, key, None)
    try:
        _bpf(_MAP_DELETE, attributes)
    except FileNotFoundError:
        return False
    return True


def next_key(descriptor: int, key: bytes | None, size: int) -> bytes | None:
    """The key after `key` (None: the first one); None behind the last."""
    following = ctypes.create_string_buffer(size)
    attributes, _keep = _element(descriptor, key, following)
    try:
        _bpf(_MAP_NEXT_KEY, attributes)
    except FileNotFoundError:
        return None
    return following.raw


# ---------------------------------------------------------------------- programs


def load_program(
    kind: int, code: bytes, name: str, *, attach: int = 0, function: int = 0, module: int = 0, log: bool = False
) -> int:
    """A program's descriptor. Refused, with the verifier's words, if the kernel does not take it.

    For `PROGRAM_TRACING`: `attach` is FENTRY or FEXIT, `function` the id of the function's type in the BTF that
    `module` is a descriptor of (0: vmlinux).
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    said = ctypes.create_string_buffer(_LOG_BYTES if log else 1)
    attributes = struct.pack(
        "=IIQQIIQII16sIIIIQIIQIII",
        kind,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
        1 if log else 0,
        len(said) if log else 0,
        ctypes.addressof(said) if log else 0,
        0,
        0,
        _short(name),
        0,
        attach,
        *(0,) * 7,
        function,
        module,
    )
    try:
        return _bpf(_PROG_LOAD, attributes)
    except OSError as fault:
        if not log and fault.errno not in (errno.EPERM, errno.ENOMEM):
            return load_program(kind, code, name, attach=attach, function=function, module=module, log=True)
        raise Refused(fault.errno or 0, said.value.decode(errors="replace")) from None


def attach_program(program: int, tracepoint: str | None = None) -> int:
    """A link's descriptor: to a raw tracepoint, or (None) to the function that the program was loaded for."""
    name = None if tracepoint is None else ctypes.create_string_buffer(tracepoint.encode())
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("=QI", 0 if name is None else ctypes.addressof(name), program))


def link_event(program: int, event: int) -> int:
    """A link's descriptor: to a perf event, which lives as long as the link. Linux 5.15."""
    return _bpf(_LINK_CREATE, struct.pack("=IIII", program, event, _PERF_EVENT, 0))


def program_id(program: int) -> int:
    """The kernel's number of a program."""
    return _numbers(program)[1]


def linked_program_id(link: int) -> int:
    """The number of the program that a link calls."""
    return _numbers(link)[2]


def _numbers(descriptor: int) -> tuple[int, int, int]:
    """How `struct bpf_prog_info` and `struct bpf_link_info` begin: type, id, and of a link its program's id."""
    info = ctypes.create_string_buffer(12)
    _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
    kind, number, program = struct.unpack("=III", info.raw)
    return kind, number, program


def run_on(program: int, cpu: int) -> bool:
    """Run a raw tracepoint's program on a processor, there and now; false if that processor is not online."""
    attributes = struct.pack("=IIIIQQIIIIQQII", program, *(0,) * 11, _RUN_ON_CPU, cpu)
    try:
        _bpf(_PROG_TEST_RUN, attributes)
    except OSError as fault:
        if fault.errno == errno.ENXIO:
            return False
        raise
    return True


class Counters:
    """Where a kernel keeps what `Info` tells, in its own idea of `struct bpf_prog_info`."""

    def __init__(self, types: Types) -> None:
        self._skipped, self._verified = (
            None if member is None else member.offset
            for member in (types.member("bpf_prog_info", name) for name in ("recursion_misses", "verified_insns"))
        )
        self._info = ctypes.create_string_buffer(512)

    def read(self, program: int) -> Info:
        """Of one program, since it was loaded."""
        info = self._info
        ctypes.memset(info, 0, len(info))  # the kernel takes what it finds there for wishes
        _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", program, len(info), ctypes.addressof(info)))
        skipped = 0 if self._skipped is None else struct.unpack_from("=Q", info, self._skipped)[0]
        verified = 0 if self._verified is None else struct.unpack_from("=I", info, self._verified)[0]
        return Info(skipped, verified)


def module_types(module: str) -> int:
    """A descriptor of a loaded module's BTF. FileNotFoundError if there is none."""
    number = 0
    while True:
        attributes = ctypes.create_string_buffer(struct.pack("=II", number, 0), 128)
        if _libc.syscall(_SYSCALL, _BTF_GET_NEXT_ID, attributes, len(attributes)) < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"/sys/kernel/btf/{module}")
        (number,) = struct.unpack_from("=I", attributes, 4)
        descriptor = _bpf(_BTF_GET_FD_BY_ID, struct.pack("=I", number))
        name = ctypes.create_string_buffer(64)
        # struct bpf_btf_info: btf, btf_size, id; name, name_len; kernel_btf
        info = ctypes.create_string_buffer(struct.pack("=QIIQII", 0, 0, 0, ctypes.addressof(name), len(name), 0), 32)
        try:
            _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
        except OSError:
            os.close(descriptor)
            raise
        if name.value.decode() == module and struct.unpack_from("=I", info, 28)[0]:
            return descriptor
        os.close(descriptor)


# ---------------------------------------------------------------------- names in bpffs


def pin(descriptor: int, path: Path) -> None:
    """Give a map, program or link a name in a bpffs: it lives until that is removed. OSError with the path."""
    with _naming(path) as name:
        _bpf(_OBJ_PIN, struct.pack("=QI", name, descriptor))


def pinned(path: Path) -> int:
    """A descriptor of what has this name. OSError with the path."""
    with _naming(path) as name:
        return _bpf(_OBJ_GET, struct.pack("=QI", name, 0))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[int]:
    """The address of a path, and the path in what is raised."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        yield ctypes.addressof(name)
    except OSError as fault:
        raise OSError(fault.errno, fault.strerror, str(path)) from None


# ---------------------------------------------------------------------- may it be used at all


def bpf_refusal() -> str | None:
    """Why this process may not use BPF, as one sentence with the cure; None if it may make a ring buffer map."""
    if os.geteuid() != 0:
        return "eBPF needs root: run this as root, for example with sudo"
    if not supported_machine():
        return f"the processor type {os.uname().machine} is not supported: use x86_64 or aarch64"
    try:
        os.close(create_map(_MAP_TYPE_RINGBUF, 0, 0, os.sysconf("SC_PAGE_SIZE"), 0, "rsyncfs_try"))
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


def trampoline_refusal(types: Types) -> str | None:
    """Why BPF trampolines (fentry, fexit) are not to be had; None if one could be attached, and was removed again."""
    function = types.function("vfs_write")
    if function is None:
        return "the kernel's type information does not name vfs_write"
    return _trial(function)


def _trial(function: Function) -> str | None:
    try:
        program = load_program(PROGRAM_TRACING, RETURN_ZERO, "rsyncfs_try", attach=FEXIT, function=function.id)
    except OSError as fault:
        return f"the kernel refuses to load one ({fault.strerror})"
    try:
        os.close(attach_program(program))
    except OSError as fault:
        return f"the kernel refuses to attach one ({fault.strerror})"
    finally:
        os.close(program)
    return None

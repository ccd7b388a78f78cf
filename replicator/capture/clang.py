"""The compiler, as a process of its own: C on standard input, an object (object.py) on standard output.

BCC brings the whole of clang and LLVM into the process that uses it; here that memory is given back as soon as the
programs are made. Reads the kernel headers from $BCC_KERNEL_SOURCE. What it complains of goes to standard error; it
exits with 1 if the sources do not compile.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from replicator.capture.object import MapSpec, Object, generalise
from replicator.errors import EnvironmentFault
from replicator.resources import load_bcc


def compiled(text: bytes) -> Object:
    """The object of one source text. BCC raises a bare Exception if it does not compile."""
    bcc = load_bcc()
    from bcc.libbcc import lib

    lib.bpf_function_start.restype = ctypes.c_void_p
    lib.bpf_table_name.restype = ctypes.c_char_p
    lib.bpf_function_name.restype = ctypes.c_char_p
    built = bcc.BPF(text=text)
    module: Any = built.module
    numbers = range(lib.bpf_num_tables(module))
    maps = tuple(
        MapSpec(
            lib.bpf_table_name(module, number).decode(),
            lib.bpf_table_type_id(module, number),
            lib.bpf_table_key_size_id(module, number),
            lib.bpf_table_leaf_size_id(module, number),
            lib.bpf_table_max_entries_id(module, number),
            lib.bpf_table_flags_id(module, number),
        )
        for number in numbers
    )
    descriptors = [lib.bpf_table_fd_id(module, number) for number in numbers]
    programs = {}
    for number in range(lib.bpf_num_functions(module)):
        name = lib.bpf_function_name(module, number)
        code = ctypes.string_at(lib.bpf_function_start(module, name), lib.bpf_function_size(module, name))
        programs[name.decode()] = generalise(code, descriptors)
    return Object(maps, programs)


def main() -> int:
    """Compile standard input."""
    try:
        made = compiled(sys.stdin.buffer.read())
    except EnvironmentFault as fault:
        sys.stderr.write(f"{fault}\n")
        return fault.exit_code
    except Exception as fault:  # noqa: BLE001 - BCC raises bare Exceptions; what clang said went to descriptor 2
        sys.stderr.write(f"{fault}\n")
        return 1
    sys.stdout.buffer.write(made.dump())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Puts one C text together from the families of hooks in ebpf/ that are wanted and that this kernel can have.

Takes the names of families, a filesystem's type and BTF; gives the text to compile, the hooks that are in it, and those
that are left out with the reason. Reads the sources, and nothing else.

Around the body of a function's hook (ENTRY, AFTER) this writes one program for each way in which it can be called: a
trampoline's hands it all arguments and the result at once; probes are a pair, of which the first remembers the
arguments (ebpf/vfs.h). Where the kernel may skip a program, it gets spares (ebpf/notes.h).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from replicator.capture import direct, layout
from replicator.capture.btf import Types
from replicator.capture.preemption import tracepoints_preemptible
from replicator.errors import EnvironmentFault
from replicator.resources import ebpf_directory

HEADERS: Final = ("compat.h", "context.h", "event.h", "maps.h", "filter.h", "repeat.h", "emit.h")
MOST_SPARES: Final = 2
"""Programs at one place besides the first: each tells what the ones before it were skipped for."""
_TELLERS: Final = ("RSYNCFS_FIRST", "RSYNCFS_SPARE", "RSYNCFS_SPARE_2")  # enum rsyncfs_teller of ebpf/notes.h
MOST_HOOKS: Final = 128
"""As many numbers for hooks there are in ebpf/notes.h (RSYNCFS_HOOKS)."""
_NOTES: Final = "notes.h"
_FUNCTIONS: Final = "vfs.h"

# Where a probe finds the arguments and the result, by processor type: members of struct pt_regs.
_REGISTERS: Final = {"x86_64": (("di", "si", "dx", "cx", "r8", "r9"), "ax")}
_REGISTER_ARRAY: Final = {"aarch64": "regs"}

AnyHook = layout.Hook | layout.FunctionHook


def target(hook: AnyHook) -> str:
    """What a hook is attached to."""
    return hook.tracepoint if isinstance(hook, layout.Hook) else hook.function


@dataclass(frozen=True, slots=True)
class Excluded:
    """A hook that is not in use, and why."""

    hook: AnyHook
    reason: str
    log: str = ""
    """What the kernel's verifier said, if it was that."""
    refused: bool = False
    """Whether the kernel has it, and did not let it be hooked."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """A text and what is in it."""

    text: str
    hooks: tuple[AnyHook, ...]
    """Each one's place is its number in ebpf/notes.h."""
    excluded: tuple[Excluded, ...]


def probes_supported() -> bool:
    """Whether it is known where this processor type passes arguments."""
    return os.uname().machine in {*_REGISTERS, *_REGISTER_ARRAY}


def assemble(
    families: Sequence[str],
    fstype: str,
    types: Types,
    defines: Sequence[str] = (),
    cast: direct.Cast | None = None,
) -> Assembly:
    """The text for these families. EnvironmentFault if what all of them need is missing.

    With `cast`, programs read by loads (direct.py).
    """
    directory = ebpf_directory()
    headers = {name: (directory / name).read_text() for name in HEADERS}
    excluded: list[Excluded] = []
    chosen: dict[str, str] = {}
    wanted: list[AnyHook] = []
    for family in families:
        text = (directory / f"{family}.c").read_text()
        objections = judge(text, fstype, types)
        excluded += [Excluded(hook, why) for hook, why in objections.items() if why is not None]
        usable = [hook for hook, why in objections.items() if why is None]
        if usable:
            chosen[f"{family}.c"] = text
            wanted += usable
    assert len(wanted) <= MOST_HOOKS
    functions = [hook for hook in wanted if isinstance(hook, layout.FunctionHook)]
    if functions or tracepoints_preemptible(types):
        headers[_NOTES] = (directory / _NOTES).read_text()
    if functions:
        headers[_FUNCTIONS] = (directory / _FUNCTIONS).read_text()
    lacking = [member for text in headers.values() for member in layout.missing(text, types)]
    if lacking:
        raise EnvironmentFault(
            f"this kernel's types lack {', '.join(lacking)}, which every eBPF program reads: use a newer rsyncfs"
        )
    parts = [f"#define {name} 1\n" for name in defines]
    if cast is not None:
        parts.append(f"#define RSYNCFS_CAST {cast.type}\n#define RSYNCFS_CAST_CALL {direct.CALL}\n")
    parts.append(layout.constants([*headers.values(), *chosen.values(), _PROBE_MEMBERS], types))
    parts += [f"#define RETURNS_POINTER_{hook.function} {int(_returns_pointer(hook, types))}\n" for hook in functions]
    parts += [f'#line 1 "{name}"\n{text}' for name, text in (headers | chosen).items()]
    entered = {hook.function for hook in functions if hook.entry}
    for number, hook in enumerate(wanted):
        if isinstance(hook, layout.Hook):
            parts.append(_around_tracepoint(number, hook, most_spares(hook, types)))
        else:
            parts.append(_around_function(number, hook, types, noted=hook.function not in entered))
    return Assembly("".join(parts), tuple(wanted), tuple(excluded))


def judge(text: str, fstype: str, types: Types) -> dict[AnyHook, str | None]:
    """Every hook of one source that concerns `fstype`, with why the kernel cannot have it (None if it can)."""
    hooks: list[AnyHook] = [*layout.hooks(text)]
    hooks += [
        hook for hook in layout.function_hooks(text) if hook.fstype in ("any", fstype) and not hook.superfluous(types)
    ]
    lacking = layout.missing(text, types)
    if lacking:
        return dict.fromkeys(hooks, f"this kernel's types lack {', '.join(lacking)}")
    return {hook: hook.objection(types) for hook in hooks}


_PROBE_MEMBERS: Final = "".join(
    f"FIELD(pt_regs, {name}, ctx) "
    for name in dict.fromkeys(
        [register for arguments, result in _REGISTERS.values() for register in (*arguments, result)]
        + list(_REGISTER_ARRAY.values())
    )
)


def most_spares(hook: AnyHook, types: Types) -> int:
    """How many spare programs are written, for a tracepoint or a trampoline."""
    if isinstance(hook, layout.FunctionHook):
        return 0 if hook.entry else MOST_SPARES
    return MOST_SPARES if tracepoints_preemptible(types) else int(hook.interrupts)


def program_name(hook: AnyHook, spare: int = 0) -> str:
    """What a tracepoint or a trampoline calls; `spare` counts those after the first."""
    if isinstance(hook, layout.Hook):
        return f"{f'spare{spare}' if spare else 'first'}__{hook.family}__{hook.tracepoint}"
    if hook.entry:
        return f"fentry__{hook.function}"
    return f"{f'spare{spare}' if spare else 'fexit'}__{hook.function}"


def probe_programs(hook: layout.FunctionHook) -> tuple[str, str]:
    """The names of those that probes call: at the entry and after the return. An ENTRY has the first only."""
    if hook.entry:
        return f"probe_only__{hook.function}", ""
    return f"probe__{hook.function}", f"return__{hook.function}"


def _returns_pointer(hook: layout.FunctionHook, types: Types) -> bool:
    function = types.function(hook.function)
    return function is not None and function.result.endswith("*")


def _around_tracepoint(number: int, hook: layout.Hook, spares: int) -> str:
    """The programs around a body."""
    noted = spares > 0 and not hook.interrupts
    return "".join(
        f"int {program_name(hook, spare)}(struct bpf_raw_tracepoint_args *ctx)\n{{\n"
        f"{_unless_told(number, spare, noted)}\thook__{hook.family}__{hook.tracepoint}(ctx);\n"
        f"{_note(number, spare, noted)}\treturn 0;\n}}\n"
        for spare in range(1 + spares)
    )


def _around_function(number: int, hook: layout.FunctionHook, types: Types, *, noted: bool) -> str:
    """The programs around a body. Without `noted`, it can be called twice for one call, also from an interrupt."""
    function = types.function(hook.function)
    assert function is not None
    positions = hook.positions(function.arguments)
    assert positions is not None
    count = len(function.arguments)
    body = f"{'entry' if hook.entry else 'after'}__{hook.function}"
    given = "".join(f"\tcall.argument[{at}] = words[{position}];\n" for at, position in enumerate(positions))
    words = count if hook.entry else count + 1
    result = "" if hook.entry else f"\tcall.result = words[{count}];\n"
    text = ""
    for spare in range(1 + most_spares(hook, types)):
        text += (
            f"int {program_name(hook, spare)}(struct rsyncfs_words *ctx)\n{{\n"
            f"\tu64 words[{words}];\n\tstruct rsyncfs_call call = {{}};\n\n{_unless_told(number, spare, noted)}"
            f"\tbpf_probe_read_kernel(words, sizeof(words), ctx);\n{given}{result}\t{body}(&call);\n"
            f"{_note(number, spare, noted)}\treturn 0;\n}}\n"
        )
    if not probes_supported():
        return text
    entry, after = probe_programs(hook)
    loads = "".join(f"\tcall.argument[{at}] = {_register(position)};\n" for at, position in enumerate(positions))
    if hook.entry:
        return text + (
            f"int {entry}(struct pt_regs *ctx)\n{{\n\tstruct rsyncfs_call call = {{}};\n\n{loads}"
            f"\treturn {body}(&call);\n}}\n"
        )
    return text + (
        f"int {entry}(struct pt_regs *ctx)\n{{\n\tstruct rsyncfs_call call = {{}};\n\n{loads}"
        f"\treturn rsyncfs_remember({number}, {_inode(hook)}, &call);\n}}\n"
        f"int {after}(struct pt_regs *ctx)\n{{\n\tstruct rsyncfs_call call = {{}};\n"
        f"\tbool told = {_was_told(number, noted, 'RSYNCFS_PROBE')};\n\n"
        f"\tif (!rsyncfs_recall({number}, &call) || told)\n\t\treturn 0;\n"
        f"\tcall.result = {_register(None)};\n\treturn {body}(&call);\n}}\n"
    )


def _unless_told(number: int, spare: int, noted: bool) -> str:
    """C with which a spare ends if it has nothing to tell."""
    return f"\tif ({_was_told(number, noted, _TELLERS[spare])})\n\t\treturn 0;\n" if spare else ""


def _note(number: int, spare: int, noted: bool) -> str:
    """C with which the first program tells its spares that they need not tell."""
    return f"\trsyncfs_tell_spare({number});\n" if noted and not spare else ""


def _was_told(number: int, noted: bool, teller: str) -> str:
    """C for whether a call need not be told."""
    return f"rsyncfs_was_told({number}, {teller})" if noted else "false"


def _register(argument: int | None) -> str:
    """C for an argument, or (None) for the result."""
    machine = os.uname().machine
    if machine in _REGISTERS:
        arguments, result = _REGISTERS[machine]
        return f"FIELD(pt_regs, {result if argument is None else arguments[argument]}, ctx)"
    return f"rsyncfs_register(ADDRESS(pt_regs, {_REGISTER_ARRAY[machine]}, ctx), {argument or 0})"


def _inode(hook: layout.FunctionHook) -> str:
    """C for an inode that tells which filesystem the call is about."""
    types = hook.arguments
    at = types.index("struct inode *") if "struct inode *" in types else 0
    return f"rsyncfs_inode_of_{types[at].split()[1]}(call.argument[{at}])"

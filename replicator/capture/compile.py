"""Compiles a set of families of eBPF programs with BCC and loads them.

Takes the names of families (files in ebpf/); gives a `Program` with its maps and attached hooks, and says of each hook
that could not be used why. Every failure of the environment is an EnvironmentFault with cause and cure.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replicator.capture import layout
from replicator.capture.bpf import bpf_refusal
from replicator.capture.btf import BTF_DIRECTORY, Btf, BtfError
from replicator.capture.headers import CACHE, header_tree
from replicator.errors import EnvironmentFault
from replicator.resources import ebpf_directory

_log = logging.getLogger(__name__)

_HEADERS = ("compat.h", "context.h", "event.h", "maps.h", "filter.h", "emit.h")


@dataclass(frozen=True, slots=True)
class Excluded:
    """A hook that is not in use, and why."""

    hook: layout.Hook
    reason: str


def bcc_module() -> Any:
    """The distribution's bcc. EnvironmentFault if it is missing, or is the unrelated package of that name from PyPI."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bcc
    except ImportError as fault:
        raise EnvironmentFault(
            f"the Python package bcc cannot be loaded ({fault}): install python3-bpfcc (Debian) or python3-bcc "
            "(Fedora) and run rsyncfs from a virtual environment with system site packages"
        ) from fault
    if not hasattr(bcc, "BPF"):
        raise EnvironmentFault(
            f"{bcc.__file__} is not the BPF Compiler Collection: remove that package (pip uninstall bcc) and install "
            "python3-bpfcc (Debian) or python3-bcc (Fedora)"
        )
    return bcc


def kernel_types(modules: tuple[str, ...] = ()) -> Btf:
    """The running kernel's BTF with that of `modules`. EnvironmentFault if there is none."""
    try:
        return Btf.of_kernel(modules, BTF_DIRECTORY)
    except OSError as fault:
        raise EnvironmentFault(
            f"cannot read the kernel's type information {fault.filename}: {fault.strerror}; use a kernel built with "
            "CONFIG_DEBUG_INFO_BTF=y"
        ) from fault
    except BtfError as fault:
        raise EnvironmentFault(f"the kernel's type information is not readable: {fault}; use another kernel") from fault


class Program:
    """Families of eBPF programs, compiled, loaded and attached.

    `defines` are numbers for the sources (sizes of maps). Hooks whose tracepoint or members the kernel lacks are left
    out, see `excluded`; whether enough is left is for the caller to judge.
    """

    def __init__(self, families: Sequence[str], defines: Mapping[str, int], types: Btf, cache: Path = CACHE) -> None:
        refusal = bpf_refusal()
        if refusal is not None:
            raise EnvironmentFault(refusal)
        self.attached: list[layout.Hook] = []
        self.excluded: list[Excluded] = []
        self._links: list[int] = []
        text, wanted = self._source(families, defines, types)
        self._bpf = self._compile(text, header_tree(cache))
        try:
            for hook in wanted:
                self._attach(hook)
        except BaseException:
            self.close()
            raise

    def table(self, name: str) -> Any:
        """A map as BCC's table object."""
        return self._bpf[name.encode()]

    def map_descriptor(self, name: str) -> int:
        """A map's descriptor; it lives as long as this program."""
        return int(_bcc_library().bpf_table_fd(self._bpf.module, name.encode()))

    def programs(self) -> list[tuple[layout.Hook, int]]:
        """The attached hooks with the descriptors of their programs."""
        return [(hook, self._bpf.funcs[hook.function.encode()].fd) for hook in self.attached]

    def close(self) -> None:
        """Detach all hooks and free programs and maps. May be called twice."""
        while self._links:
            os.close(self._links.pop())
        if self._bpf is not None:
            self._bpf.cleanup()
            self._bpf = None

    def _source(self, families: Sequence[str], defines: Mapping[str, int], types: Btf) -> tuple[str, list[layout.Hook]]:
        directory = ebpf_directory()
        headers = {name: (directory / name).read_text() for name in _HEADERS}
        lacking = [member for text in headers.values() for member in layout.missing(text, types)]
        if lacking:
            raise EnvironmentFault(
                f"this kernel's types lack {', '.join(lacking)}, which every eBPF program reads: use a newer rsyncfs"
            )
        chosen: dict[str, str] = {}
        wanted: list[layout.Hook] = []
        for family in families:
            text = (directory / f"{family}.c").read_text()
            lacking = layout.missing(text, types)
            objections = {hook: hook.objection(types) for hook in layout.hooks(text)}
            if lacking:
                objections = dict.fromkeys(objections, f"this kernel's types lack {', '.join(lacking)}")
            self.excluded += [Excluded(hook, why) for hook, why in objections.items() if why is not None]
            usable = [hook for hook, why in objections.items() if why is None]
            if usable:
                chosen[f"{family}.c"] = text
                wanted += usable
        parts = [f"#define {name} {value}\n" for name, value in defines.items()]
        parts.append(layout.constants([*headers.values(), *chosen.values()], types))
        parts += [f'#line 1 "{name}"\n{text}' for name, text in (headers | chosen).items()]
        return "".join(parts), wanted

    def _compile(self, text: str, tree: Path) -> Any:
        bcc = bcc_module()
        with _environment("BCC_KERNEL_SOURCE", str(tree)), _stderr() as said:
            try:
                return bcc.BPF(text=text.encode())
            except Exception as fault:  # BCC raises bare Exceptions; what the compiler said went to descriptor 2
                complaint = next((line for line in said() if "error" in line.lower()), str(fault).splitlines()[0])
                _log.debug("BCC said: %s", "\n".join(said()))
                raise EnvironmentFault(
                    f"the eBPF programs cannot be compiled for this kernel ({complaint.strip()}): use a kernel and BCC "
                    "that this version of rsyncfs supports"
                ) from fault

    def _attach(self, hook: layout.Hook) -> None:
        bcc, library = bcc_module(), _bcc_library()
        with _stderr() as said:
            try:
                program = self._bpf.load_func(hook.function.encode(), bcc.BPF.RAW_TRACEPOINT)
            except Exception as fault:  # noqa: BLE001 - BCC raises nothing more exact; the hook is reported as missing
                refused = "super-user" in str(fault)
                reason = "the kernel refuses this program (EPERM)" if refused else str(fault)
                _log.debug("%s: %s: %s", hook.function, reason, "\n".join(said()))
                self.excluded.append(Excluded(hook, reason))
                return
            # BCC's own bookkeeping allows one program for each tracepoint; two families may need the same
            link = library.bpf_attach_raw_tracepoint(program.fd, hook.tracepoint.encode())
            code = ctypes.get_errno()
        if link < 0:
            self.excluded.append(Excluded(hook, f"the kernel refuses to attach it: {os.strerror(code)}"))
            return
        self._links.append(link)
        self.attached.append(hook)


def _bcc_library() -> Any:
    bcc_module()
    from bcc.libbcc import lib

    return lib


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _stderr() -> Iterator[Callable[[], list[str]]]:
    """Keep what C code writes to descriptor 2; yields a function that returns its lines."""
    if sys.stderr is not None:
        sys.stderr.flush()
    kept = os.memfd_create("bcc-stderr")
    try:
        saved = os.dup(2)
    except OSError:  # there is no descriptor 2: nothing to keep, and nothing to give back
        saved = -1
    os.dup2(kept, 2)
    try:
        yield lambda: os.pread(kept, 1 << 20, 0).decode(errors="replace").splitlines()
    finally:
        if saved < 0:
            os.close(2)
        else:
            os.dup2(saved, 2)
            os.close(saved)
        os.close(kept)

"""The tree of headers that BCC compiles against, made from the kernel's own BTF, cached for each kernel build.

Takes a cache directory; gives a directory to hand to BCC as kernel source. Needs bpftool once for each kernel build.
Only types and helper numbers come from here: layouts of kernel structs do not (see layout.py), because a compiler can
get them wrong.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import xxhash

from replicator.capture.btf import BTF_DIRECTORY
from replicator.errors import EnvironmentFault

CACHE = Path("/var/cache/rsyncfs")

_KCONFIG = """\
/* Stands in for the kernel's headers: types from BTF, and the few macros that BTF does not carry. */
#ifndef RSYNCFS_KCONFIG_H
#define RSYNCFS_KCONFIG_H
#define __LINUX_BPF_H__
#define _UAPI__LINUX_BPF_H__
#define BPF_NO_PRESERVE_ACCESS_INDEX
#define CONFIG_BPF_SYSCALL 1
#include "vmlinux.h"
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#define LINUX_VERSION_CODE KERNEL_VERSION({version})
#define PAGE_SIZE {page_size}
#endif
"""

# BCC's own headers include these; everything in them comes from vmlinux.h.
_EMPTY = (
    "include/linux/types.h",
    "include/linux/bpf_common.h",
    "include/linux/version.h",
    "include/linux/log2.h",
    "include/linux/bpf.h",
    "include/uapi/linux/bpf.h",
    "include/uapi/linux/if_packet.h",
    "include/asm/page.h",
)


def kernel_version(release: str) -> tuple[int, int, int]:
    """The numbers of a release such as 6.1.0-25-amd64. Missing ones are 0."""
    numbers: list[int] = []
    for part in release.replace("-", ".").split(".")[:3]:
        digits = "".join(character for character in part if character.isdigit())
        if digits != part:
            break
        numbers.append(int(digits))
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major, minor, patch


def header_tree(cache: Path = CACHE, btf: Path = BTF_DIRECTORY / "vmlinux") -> Path:
    """The tree for the running kernel, made on first use. EnvironmentFault says what is missing.

    A tree is complete or absent: it is made beside its place, synced and renamed into it.
    """
    try:
        blob = btf.read_bytes()
    except OSError as fault:
        raise EnvironmentFault(
            f"cannot read the kernel's type information {btf}: {fault.strerror}; use a kernel built with "
            "CONFIG_DEBUG_INFO_BTF=y"
        ) from fault
    kconfig = _KCONFIG.replace("{version}", ", ".join(map(str, kernel_version(os.uname().release)))).replace(
        "{page_size}", str(os.sysconf("SC_PAGE_SIZE"))
    )
    digest = xxhash.xxh3_128(blob)
    digest.update("\0".join((kconfig, *_EMPTY)).encode())
    tree = cache / f"headers-{digest.hexdigest()}"
    if tree.is_dir():
        return tree
    types = _types(btf)
    try:
        cache.mkdir(mode=0o755, parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".headers-", dir=cache))
        try:
            _write(scratch, {"include/linux/kconfig.h": kconfig.encode(), "include/linux/vmlinux.h": types})
            _place(scratch, tree)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as fault:
        raise EnvironmentFault(
            f"cannot keep kernel headers in {cache}: {fault.strerror}; make it writable for root or free some space"
        ) from fault
    return tree


def _types(btf: Path) -> bytes:
    try:
        done = subprocess.run(["bpftool", "btf", "dump", "file", btf, "format", "c"], capture_output=True, check=False)
    except FileNotFoundError as fault:
        raise EnvironmentFault("bpftool is not installed: install the package bpftool") from fault
    if done.returncode != 0 or not done.stdout:
        said = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise EnvironmentFault(f"bpftool cannot dump {btf}: {said}; install a newer bpftool")
    return done.stdout


def _write(scratch: Path, files: dict[str, bytes]) -> None:
    scratch.chmod(0o755)
    for name, content in {**dict.fromkeys(_EMPTY, b""), **files}.items():
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _place(scratch: Path, tree: Path) -> None:
    try:
        scratch.rename(tree)
    except OSError:
        if not tree.is_dir():  # otherwise another process was faster, with the same content
            raise
    descriptor = os.open(tree.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

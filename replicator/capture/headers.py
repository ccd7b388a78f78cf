"""The tree that BCC takes for the kernel's headers: a handful of basic types.

Takes a cache directory; gives a directory to hand to BCC as kernel source. No header of the kernel is needed and no
layout of it comes from here: helpers and map types are BCC's own, members of kernel structs are read by offsets that
layout.py takes from BTF. A tree is complete or absent: it is made beside its place, synced, and renamed into it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import xxhash

from replicator.capture.cache import CACHE
from replicator.errors import EnvironmentFault

_KCONFIG = """\
#ifndef RSYNCFS_KCONFIG_H
#define RSYNCFS_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
#define BPF_NO_PRESERVE_ACCESS_INDEX
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#define LINUX_VERSION_CODE KERNEL_VERSION({version})
#define PAGE_SIZE {page_size}
#define __always_inline inline __attribute__((always_inline))

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u64 __attribute__((aligned(8))) __aligned_u64;
typedef __s8 s8;
typedef __u8 u8;
typedef __s16 s16;
typedef __u16 u16;
typedef __s32 s32;
typedef __u32 u32;
typedef __s64 s64;
typedef __u64 u64;
typedef __u16 __le16, __be16, __sum16;
typedef __u32 __le32, __be32, __wsum;
typedef __u64 __le64, __be64;
typedef unsigned long uintptr_t;
typedef unsigned long size_t;
typedef long ssize_t;
typedef _Bool bool;
enum { false = 0, true = 1 };

/* The user ABI of io_submit(2). */
struct iocb {
	__u64 aio_data;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	__u32 aio_key;
	__s32 aio_rw_flags;
#else
	__s32 aio_rw_flags;
	__u32 aio_key;
#endif
	__u16 aio_lio_opcode;
	__s16 aio_reqprio;
	__u32 aio_fildes;
	__u64 aio_buf;
	__u64 aio_nbytes;
	__s64 aio_offset;
	__u64 aio_reserved2;
	__u32 aio_flags;
	__u32 aio_resfd;
};
#endif
"""

# BCC's own headers include these.
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
        if not part.isdigit():
            break
        numbers.append(int(part))
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major, minor, patch


def header_tree(cache: Path = CACHE, release: str | None = None) -> Path:
    """The tree for a kernel, or the running one, made on first use. EnvironmentFault if it cannot be kept."""
    version = kernel_version(release or os.uname().release)
    kconfig = _KCONFIG.replace("{version}", ", ".join(map(str, version))).replace(
        "{page_size}", str(os.sysconf("SC_PAGE_SIZE"))
    )
    files = {**dict.fromkeys(_EMPTY, ""), "include/linux/kconfig.h": kconfig}
    tree = cache / f"headers-{xxhash.xxh3_128_hexdigest(repr(files).encode())}"
    if tree.is_dir():
        return tree
    try:
        cache.mkdir(mode=0o755, parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".headers-", dir=cache))
        try:
            _write(scratch, files)
            _place(scratch, tree)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as fault:
        raise EnvironmentFault(
            f"cannot keep headers for BCC in {cache}: {fault.strerror}; make it writable for root or free some space"
        ) from fault
    return tree


def _write(scratch: Path, files: dict[str, str]) -> None:
    scratch.chmod(0o755)
    for name, content in files.items():
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
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

"""Where the inodes of an ext4 lie on its device: libext2fs, asked through ctypes.

Takes a descriptor of the device; gives a Layout. The library knows the features of the format (meta_bg, flex_bg,
64bit, bigalloc, groups that were never used) and refuses those that it does not know. The filesystem is mounted
meanwhile, so checksums of what changes all the time are not judged; numbers are held to the device's size instead.
"""

from __future__ import annotations

import ctypes
import os
import struct
from ctypes import POINTER, byref, c_char_p, c_int, c_long, c_uint, c_uint16, c_uint32, c_uint64, c_ulong, c_void_p
from functools import cache
from typing import Any, Final, NamedTuple

from replicator.errors import EnvironmentFault

LIBRARY: Final = "libext2fs.so.2"

_64BITS, _SKIP_MMP, _IGNORE_CHECKSUMS = 0x20000, 0x100000, 0x200000
_INODE_UNINIT: Final = 0x1
_GROUP_CHECKSUMS: Final = 0x10 | 0x400  # s_feature_ro_compat: uninit_bg, metadata_csum
_LARGE_DIRECTORIES: Final = 0x4000  # s_feature_incompat
_ROOT_INODE: Final = 2

_SUPERBLOCK: Final = 1024
"""Its offset on the device, and its size."""
_MAGIC: Final = 0xEF53


class _Filesystem(ctypes.Structure):
    """The beginning of struct struct_ext2_filsys, which is the same in all versions of the library's ABI."""

    _fields_ = [
        ("magic", c_long),
        ("io", c_void_p),
        ("flags", c_int),
        ("device_name", c_char_p),
        ("super", c_void_p),
        ("blocksize", c_uint),
        ("fragsize", c_int),
        ("group_desc_count", c_uint32),
        ("desc_blocks", c_ulong),
    ]


class Run(NamedTuple):
    """Inodes that lie one behind the other."""

    first: int
    """The number of the first."""
    inodes: int
    offset: int
    """Of the first, bytes from the device's beginning."""


class Layout(NamedTuple):
    """Where all inodes lie that were ever used."""

    runs: list[Run]
    """Ascending."""
    inode_size: int
    """Bytes."""
    large_directories: bool
    special: frozenset[int]
    """Numbers from the first ordinary inode on that belong to the filesystem itself."""
    first_ordinary: int
    """Inodes below are reserved, but for the root."""

    @property
    def root(self) -> int:
        """The number of the filesystem's root directory."""
        return _ROOT_INODE


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise EnvironmentFault(f"Cannot load {LIBRARY} ({error}); install e2fsprogs.") from error
    filesystem = POINTER(_Filesystem)
    for name, result, *arguments in (
        ("ext2fs_open", c_long, c_char_p, c_int, c_int, c_uint, c_void_p, POINTER(filesystem)),
        ("ext2fs_free", None, filesystem),
        ("ext2fs_inode_table_loc", c_uint64, filesystem, c_uint32),
        ("ext2fs_bg_itable_unused", c_uint32, filesystem, c_uint32),
        ("ext2fs_bg_flags_test", c_int, filesystem, c_uint32, c_uint16),
        ("error_message", c_char_p, c_long),
        ("initialize_ext2_error_table", None),
    ):
        function = getattr(library, str(name))
        function.restype = result
        function.argtypes = arguments
    library.initialize_ext2_error_table()
    return library


class _Super(NamedTuple):
    """What counts here of the superblock."""

    inodes: int
    block_size: int
    blocks: int
    inodes_per_group: int
    groups: int
    inode_size: int
    first_ordinary: int
    incompatible: int
    read_only_compatible: int
    special: frozenset[int]


def _parse_super(raw: bytes) -> _Super:
    """ValueError if it cannot be one of a mounted filesystem."""

    def number(form: str, at: int) -> int:
        (value,) = struct.unpack_from("<" + form, raw, at)
        return int(value)

    if len(raw) != _SUPERBLOCK or number("H", 56) != _MAGIC:
        raise ValueError("there is no ext4 superblock on it")
    logarithm, incompatible = number("I", 24), number("I", 96)
    if logarithm > 6:
        raise ValueError("its block size is impossible")
    block_size = 1024 << logarithm
    blocks = number("I", 4) | (number("I", 336) << 32 if incompatible & 0x80 else 0)
    per_group, inodes_per_group, first = number("I", 32), number("I", 40), number("I", 20)
    inode_size, first_ordinary = (number("H", 88), number("I", 84)) if number("I", 76) else (128, 11)
    if not per_group or first > 1 or blocks <= first or not 0 < inodes_per_group <= 8 * block_size:
        raise ValueError("its block groups are impossible")
    if inode_size & (inode_size - 1) or not 128 <= inode_size <= block_size:
        raise ValueError("its inode size is impossible")
    groups = -(-(blocks - first) // per_group)
    if groups * inodes_per_group != number("I", 0):
        raise ValueError("its counts of groups and inodes disagree")
    special = frozenset(number("I", at) for at in (576, 580, 620, 640))  # quota: user, group, project; orphan file
    return _Super(
        number("I", 0),
        block_size,
        blocks,
        inodes_per_group,
        groups,
        inode_size,
        first_ordinary,
        incompatible,
        number("I", 100),
        special,
    )


def read_layout(device: int, name: str) -> Layout:
    """Ask the library. EnvironmentFault, naming `name`, if it refuses the filesystem or its numbers are impossible."""
    try:
        size = os.lseek(device, 0, os.SEEK_END)
        told = _parse_super(os.pread(device, _SUPERBLOCK, _SUPERBLOCK))
        if told.blocks * told.block_size > size:
            raise ValueError("it is smaller than its filesystem")
        return _ask(device, told)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise EnvironmentFault(
            f"Cannot find the inodes of {name} on its device: {why}; check the filesystem (e2fsck), or use --scan walk."
        ) from error


def _ask(device: int, told: _Super) -> Layout:
    library = _library()
    manager = c_void_p.in_dll(library, "unix_io_manager")
    filesystem = POINTER(_Filesystem)()
    flags = _64BITS | _SKIP_MMP | _IGNORE_CHECKSUMS
    failed = library.ext2fs_open(b"/proc/self/fd/%d" % device, flags, 0, 0, manager, byref(filesystem))
    if failed:
        raise ValueError(library.error_message(failed).decode(errors="replace"))
    try:
        opened = filesystem.contents
        if opened.blocksize != told.block_size or opened.group_desc_count != told.groups:
            raise ValueError("it was changed while it was read")
        runs = _runs(library, filesystem, told)
    finally:
        library.ext2fs_free(filesystem)
    return Layout(
        runs, told.inode_size, bool(told.incompatible & _LARGE_DIRECTORIES), told.special, told.first_ordinary
    )


def _runs(library: Any, filesystem: Any, told: _Super) -> list[Run]:
    """The used part of every group's table; neighbours made one."""
    runs: list[Run] = []
    trusted = bool(told.read_only_compatible & _GROUP_CHECKSUMS)  # elsewhere the kernel does not look at these either
    for group in range(told.groups):
        count = told.inodes_per_group
        if trusted:
            if library.ext2fs_bg_flags_test(filesystem, group, _INODE_UNINIT):
                continue
            count -= library.ext2fs_bg_itable_unused(filesystem, group)
        if count <= 0:
            continue  # a damaged descriptor may also say that more are unused than there are
        block = library.ext2fs_inode_table_loc(filesystem, group)
        run = Run(group * told.inodes_per_group + 1, count, block * told.block_size)
        if not 0 < block <= told.blocks - -(-told.inodes_per_group * told.inode_size // told.block_size):
            raise ValueError(f"the inode table of group {group} lies outside of it")
        last = runs[-1] if runs else None
        if last and last.first + last.inodes == run.first and last.offset + last.inodes * told.inode_size == run.offset:
            runs[-1] = last._replace(inodes=last.inodes + run.inodes)
        else:
            runs.append(run)
    return runs

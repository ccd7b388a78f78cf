"""Bytes of regular files: write, punch, truncate, copy.

Takes open descriptors and what a fact says; writes in place at absolute offsets, so all of it may be redone. OSError as
the filesystem raises it, ENOSPC above all; what was written until then stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable

from replicator import syscalls
from replicator.model import InodeFact

Piece = tuple[int, memoryview]
"""A file offset and the bytes from there on."""

_ZEROS = bytes(1 << 20)
_COPY = 1 << 30


def write_in_place(fd: int, fact: InodeFact, pieces: Iterable[Piece]) -> None:
    """Truncate to `lowest`, punch `holes`, write `pieces`, and unless the fact is partial set the size.

    A whole content names every byte and every hole. It goes over the old one, which may be durable and the last there
    is, without a moment in which the file is shorter than both.
    """
    size = os.fstat(fd).st_size
    if fact.lowest is not None and fact.lowest < size and not fact.whole:
        os.ftruncate(fd, fact.lowest)
        size = fact.lowest
    for hole in fact.holes:
        length = min(hole.end, size) - hole.offset
        if length > 0:
            _punch(fd, hole.offset, length)
    for offset, data in pieces:
        _write(fd, offset, data)
    if not fact.partial and os.fstat(fd).st_size != fact.size:
        os.ftruncate(fd, fact.size)


def copy_content(target: int, source: int) -> None:
    """Make `target`, an empty file on the same filesystem, equal to `source`: by sharing blocks, or else by copying."""
    try:
        syscalls.ficlone(target, source)
        return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
            raise
    size = os.fstat(source).st_size
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            copied = os.copy_file_range(source, target, min(end - at, _COPY), at, at)
            if copied == 0:
                break
            at += copied
    os.ftruncate(target, size)


def _punch(fd: int, offset: int, length: int) -> None:
    try:
        syscalls.fallocate(fd, syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE, offset, length)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        for at in range(offset, offset + length, len(_ZEROS)):
            _write(fd, at, memoryview(_ZEROS)[: offset + length - at])


def _write(fd: int, offset: int, data: memoryview) -> None:
    while len(data):
        written = os.pwrite(fd, data, offset)
        offset += written
        data = data[written:]


def unlink_quietly(dirfd: int, name: bytes) -> None:
    """Remove a half-made file; nothing is to be done if that fails too."""
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=dirfd)

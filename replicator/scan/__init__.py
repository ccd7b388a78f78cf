"""TEMPORARY"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from replicator.tree.handles import SourceRoot

INODE = np.dtype(
    [
        ("ino", "<u8"),
        ("root", "<u8"),
        ("gen", "<u4"),
        ("mode", "<u4"),
        ("nlink", "<u4"),
        ("pad", "<u4"),
        ("size", "<u8"),
        ("ctime", "<i8"),
        ("mtime", "<i8"),
    ]
)


class Walk:
    complete = True

    def __init__(self, source: SourceRoot) -> None:
        self.source = source

    def mark(self) -> str | None:
        return None

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        rows: list[Any] = []

        def add(id: Any, st: os.stat_result) -> None:
            rows.append(
                (id.ino, id.root, id.gen, st.st_mode, st.st_nlink, 0, st.st_size, st.st_ctime_ns, st.st_mtime_ns)
            )

        def walk(fd: int) -> None:
            for name in os.listdir(fd):
                b = os.fsencode(name)
                try:
                    id, _ = self.source.id_at(fd, b)
                    st = os.lstat(b, dir_fd=fd)
                    add(id, st)
                    if (st.st_mode & 0o170000) == 0o040000:
                        sub = os.open(b, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                        try:
                            walk(sub)
                        finally:
                            os.close(sub)
                except OSError:
                    pass

        add(self.source.id, os.fstat(self.source.read_fd))
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.source.fd)
        walk(fd)
        os.close(fd)
        yield np.array(rows, INODE)


def scan(source: SourceRoot, how: str = "auto", since: str | None = None) -> Walk:
    return Walk(source)

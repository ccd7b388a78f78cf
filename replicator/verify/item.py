"""What the sender says of the source in a comparison: one inode, or a part of one, as an item of a question.

    id      the inode
    is      kind, size, mode, owner, mtime, device number, link target, a hash of the xattrs
    names   of a directory: name → id; "from" and "to" if these are not all names, but those in [from, to)
    blocks  a span of the content (replicator/blocks.py)

Reads the source; may wait for its disk, so it is called in worker threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from replicator import blocks, syscalls
from replicator.model import FileId, Kind, kind_of
from replicator.tree.handles import SourceRoot
from replicator.verify.digests import LABEL, xattrs_digest

NAMES = 2000
"""Names in one item."""

Item = dict[str, Any]
Excluded = Callable[[bytes, bool], bool]
"""Of a name in the directory that is described, and whether it is a directory."""


def of_inode(source: SourceRoot, fd: int, id: FileId, excluded: Excluded | None) -> Iterator[Item]:
    """All but the content of an inode, open at `fd` as by `open_to_read`. OSError."""
    status = os.fstat(fd)
    kind = kind_of(status.st_mode)
    xattrs = syscalls.get_xattrs(fd)
    labelled = LABEL in xattrs
    item: Item = {
        "id": id.text(),
        "is": {
            "kind": str(kind),
            "size": status.st_size if kind is Kind.FILE else 0,
            "mode": status.st_mode & 0o7777,
            "uid": status.st_uid,
            "gid": status.st_gid,
            "mtime": status.st_mtime_ns,
            "rdev": status.st_rdev if kind in (Kind.CHARACTER, Kind.BLOCK) else 0,
            "target": os.readlink(b"", dir_fd=fd).decode("latin-1") if kind is Kind.SYMLINK else "",
            "xattrs": xattrs_digest(xattrs, labelled=labelled),
            "labelled": labelled,
        },
    }
    if kind is not Kind.DIRECTORY:
        yield item
        return
    for names in _names(source, fd, excluded):
        yield item | names
        item = {"id": id.text()}


def _names(source: SourceRoot, fd: int, excluded: Excluded | None) -> Iterator[Item]:
    names = sorted(map(os.fsencode, os.listdir(fd)))
    for first in range(0, len(names) or 1, NAMES):
        found = {}
        for name in names[first : first + NAMES]:
            try:
                mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode if excluded is not None else 0
                if excluded is None or not excluded(name, kind_of(mode) is Kind.DIRECTORY):
                    found[name.decode("latin-1")] = source.id_at(fd, name)[0].text()
            except FileNotFoundError:
                continue  # whoever watches the directory is told of that
        item: Item = {"names": found}
        if first:
            item["from"] = names[first].decode("latin-1")
        if first + NAMES < len(names):
            item["to"] = names[first + NAMES].decode("latin-1")
        yield item


def of_content(id: FileId, span: blocks.Span) -> Item:
    """A part of a regular file's content."""
    return {"id": id.text(), "blocks": span.tree()}

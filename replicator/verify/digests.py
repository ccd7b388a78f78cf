"""Short forms of what is compared often and seldom differs: names of directories, extended attributes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import xxhash

from replicator.model import WIDE, replicated_xattr

LABEL = b"security.selinux"
"""The replica's host may give every file one; it counts only where the source has one."""
UNKNOWN: Final = b"\xff" * WIDE
"""In the place of an id: an inode that the source does not have."""


def xattrs_digest(xattrs: Mapping[bytes, bytes], *, labelled: bool) -> str:
    """One hash of all extended attributes that are replicated; of the label only if `labelled`."""
    digest = xxhash.xxh3_128()
    for name, value in sorted(item for item in xattrs.items() if replicated_xattr(item[0])):
        if labelled or name != LABEL:
            digest.update(b"%d %d " % (len(name), len(value)) + name + value)
    return digest.hexdigest()


def names_digest(names: Iterable[bytes], ids: bytes) -> str:
    """One hash of a directory's names and what they mean; both sides make the same of the same.

    `names` are sorted, `ids` those of the inodes that they mean, in that order, WIDE bytes each (see `wide_id`).
    """
    return xxhash.xxh3_128_hexdigest(b"/".join(names) + b"//" + ids)

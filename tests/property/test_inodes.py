"""Inodes decoded in bulk, against one that takes them field by field."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.scan.btrfs_search import gather
from replicator.scan.btrfs_search import new_buffer as btrfs_buffer
from replicator.scan.ext2fs import Run
from replicator.scan.ext4 import pieces_of
from replicator.scan.ext4_table import decode

KINDS = (0o010000, 0o020000, 0o040000, 0o060000, 0o100000, 0o120000, 0o140000)
EA_INODE = 0x200000

Row = tuple[int, ...]


def signed(number: int) -> int:
    """As 64 bits hold it."""
    return (number + 2**63) % 2**64 - 2**63


def inode(raw: bytes, ino: int, large_directories: bool) -> Row | None:
    """What the kernel makes of one inode of ext4; None if nothing."""
    mode, links, flags = (struct.unpack_from(form, raw, at)[0] for form, at in (("<H", 0), ("<H", 26), ("<I", 32)))
    if not links or mode & 0o170000 not in KINDS or flags & EA_INODE:
        return None
    low, high, gen = (struct.unpack_from("<I", raw, at)[0] for at in (4, 108, 100))
    size = low | high << 32 if mode & 0o170000 == 0o100000 or large_directories else low
    times = []
    extra = struct.unpack_from("<H", raw, 128)[0] if len(raw) > 128 else 0
    if len(raw) > 128 and extra == 0:
        extra = 32
    for base, more in ((12, 132), (16, 136)):
        (seconds,) = struct.unpack_from("<i", raw, base)
        nanoseconds = 0
        if more + 4 <= 128 + extra:
            (bits,) = struct.unpack_from("<I", raw, more)
            seconds += (bits & 3) << 32
            nanoseconds = bits >> 2
        times.append(signed(seconds * 10**9 + nanoseconds))
    return (ino, 0, gen, mode, links, 0, size, *times)


def likely(raw: bytes, mode: int, links: int, flags: int, extra: int) -> bytes:
    """Arbitrary bytes made to look somewhat like an inode."""
    made = bytearray(raw)
    struct.pack_into("<H", made, 0, mode)
    struct.pack_into("<H", made, 26, links)
    struct.pack_into("<I", made, 32, flags)
    if len(made) > 128:
        struct.pack_into("<H", made, 128, extra)
    return bytes(made)


def inodes(size: int) -> st.SearchStrategy[bytes]:
    raw = st.binary(min_size=size, max_size=size)
    modes = st.builds(int.__or__, st.sampled_from((0, *KINDS, 0o150000)), st.integers(0, 0o7777))
    return raw | st.builds(
        likely,
        raw,
        modes,
        st.sampled_from((0, 1, 2, 65000)),
        st.sampled_from((0, 0x80000, EA_INODE, 0x10000000)),
        st.sampled_from((0, 4, 8, 12, 24, 28, 32, 128)),
    )


@settings(max_examples=500)
@given(st.data(), st.sampled_from((128, 256, 512)), st.booleans(), st.integers(1, 2**32 - 100))
def test_inodes_of_ext4_are_what_the_kernel_makes_of_them(
    data: st.DataObject, size: int, large_directories: bool, first: int
) -> None:
    raw = data.draw(st.lists(inodes(size), max_size=8))
    inos = np.arange(first, first + len(raw), dtype="<u8")
    buffer = np.frombuffer(b"".join(raw), np.uint8)
    found = decode(buffer, inos, size, large_directories)
    expected = [inode(one, first + number, large_directories) for number, one in enumerate(raw)]
    assert found.rows.tolist() == [row for row in expected if row is not None]
    odd = [
        one
        for one, row in zip(raw, expected, strict=True)
        if row is None and any(one[26:28]) and any(one[0:2]) and not struct.unpack_from("<I", one, 32)[0] & EA_INODE
    ]
    assert found.odd == len(odd)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 3))), st.integers(1, 300))
def test_pieces_hold_every_inode_once_and_in_order(runs: list[tuple[int, int]], room: int) -> None:
    laid: list[Run] = []
    first, offset = 1, 4096
    for inodes_of_it, gap in runs:
        laid.append(Run(first, inodes_of_it, offset))
        first, offset = first + inodes_of_it + gap, offset + 256 * (inodes_of_it + gap)
    pieces = list(pieces_of(laid, room, 256))
    places = [(run.first + n, run.offset + 256 * n) for piece in pieces for run in piece for n in range(run.inodes)]
    assert places == [(run.first + n, run.offset + 256 * n) for run in laid for n in range(run.inodes)]
    sizes = [sum(run.inodes for run in piece) for piece in pieces]
    assert all(size == room for size in sizes[:-1])
    assert all(0 < size <= room for size in sizes)


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=40)), max_size=20))
def test_items_of_btrfs_are_gathered_from_anywhere(items: list[tuple[int, bytes]]) -> None:
    """Those of at least 16 bytes, wherever they begin, up to the very end of their room."""
    packed = b"".join(struct.pack("<QQQII", 1, key, 2, 3, len(data)) + data for key, data in items)
    buffer = btrfs_buffer()
    start = len(buffer) - len(packed)
    buffer[start:] = np.frombuffer(packed, np.uint8)
    places, at = [], start
    for _, data in items:
        places.append(at)
        at += 32 + len(data)
    wanted = np.dtype([("one", "<u8"), ("two", "<u8")])
    found = [
        (int(item["header"]["objectid"]), int(item["data"]["one"]), int(item["data"]["two"]))
        for item in gather(buffer, places, wanted)
    ]
    assert found == [(key, *struct.unpack_from("<QQ", data)) for key, data in items if len(data) >= 16]

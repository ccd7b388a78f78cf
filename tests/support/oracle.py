"""The tests' own judge of two trees; shares no code with the product.

Takes two directories that nobody is writing to; gives a list of differences in words, empty when they are the same.
Compares names, types, bytes, sizes, modes, owners, modification times in nanoseconds, device numbers, link targets,
extended attributes of every namespace (ACLs and capabilities among them) and which names are hard links of one inode;
on request also where the holes are. Access and change times are nobody's promise. No name is exempt.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1 << 20
HOLE_SLACK = 128 * 1024
"""Bytes by which allocation may differ between two filesystems of different kinds for the same holes."""

SHORT = 3800
"""Bytes of a path to which a system call lets one more name be added."""
STRIDE = 15
"""So many names of 255 bytes are a short path."""

Ranges = list[tuple[int, int]]


@contextlib.contextmanager
def within(top: bytes, path: bytes) -> Iterator[bytes]:
    """A path of what `path` is below `top`, short enough for any system call however deep it lies."""
    if len(top) + len(path) < SHORT:
        yield os.path.join(top, path)
        return
    fd = os.open(top, os.O_PATH | os.O_DIRECTORY)
    try:
        *above, name = path.split(b"/")
        for start in range(0, len(above), STRIDE):
            some = b"/".join(above[start : start + STRIDE])
            below = os.open(some, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
        yield b"/proc/self/fd/%d/%s" % (fd, name)
    finally:
        os.close(fd)


def names(top: Path) -> dict[bytes, os.stat_result]:
    """Every entry below `top` by its path relative to it, `b"."` being `top` itself."""
    root = os.fsencode(top)
    found = {b".": os.lstat(root)}
    todo = [b""]
    while todo:
        directory = todo.pop()
        with within(root, directory) as place, os.scandir(place) as entries:
            for entry in entries:
                path = os.path.join(directory, entry.name) if directory else entry.name
                info = entry.stat(follow_symlinks=False)
                found[path] = info
                if stat.S_ISDIR(info.st_mode):
                    todo.append(path)
    return found


def xattrs(path: bytes) -> dict[str, bytes]:
    """All extended attributes of `path` itself; none where the filesystem or the type has none."""
    try:
        return {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(_xattr_names(path))}
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            return {}
        raise


def _xattr_names(path: bytes) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)


def data_ranges(fd: int, size: int) -> Ranges:
    """Where the file has data, as (start, end) pairs, by SEEK_DATA and SEEK_HOLE."""
    ranges: Ranges = []
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        position = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        ranges.append((start, position))
    return ranges


def _union(one: Ranges, other: Ranges) -> Iterator[tuple[int, int]]:
    end = 0
    for start, stop in sorted(one + other):
        if stop > end:
            yield max(start, end), stop
            end = stop


def first_difference(one: bytes, other: bytes, holes: bool = False) -> str | None:
    """Compare two regular files byte by byte, reading no range that is a hole in both. None if they are the same."""
    with open(one, "rb", buffering=0) as left, open(other, "rb", buffering=0) as right:
        size = os.fstat(left.fileno()).st_size
        if size != (other_size := os.fstat(right.fileno()).st_size):
            return f"size {size} against {other_size}"
        left_data, right_data = data_ranges(left.fileno(), size), data_ranges(right.fileno(), size)
        for start, end in _union(left_data, right_data):
            for offset in range(start, end, CHUNK):
                length = min(CHUNK, end - offset)
                a, b = os.pread(left.fileno(), length, offset), os.pread(right.fileno(), length, offset)
                if a != b:
                    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
                    return f"bytes differ at {offset + at}: {a[at : at + 8].hex()} against {b[at : at + 8].hex()}"
        if holes:
            here, there = (sum(end - start for start, end in ranges) for ranges in (left_data, right_data))
            if abs(here - there) > HOLE_SLACK:
                return f"{here} bytes are data against {there}: the holes differ"
    return None


def _links(found: dict[bytes, os.stat_result]) -> dict[bytes, frozenset[bytes]]:
    """For each path that is no directory, all paths of the tree that are names of the same inode."""
    groups: dict[tuple[int, int], set[bytes]] = defaultdict(set)
    for path, info in found.items():
        if not stat.S_ISDIR(info.st_mode):
            groups[info.st_dev, info.st_ino].add(path)
    return {path: frozenset(group) for group in groups.values() for path in group}


def _entry(
    left: bytes, right: bytes, a: os.stat_result, b: os.stat_result, holes: bool, ignore: tuple[str, ...]
) -> list[str]:
    if stat.S_IFMT(a.st_mode) != stat.S_IFMT(b.st_mode):
        return [f"type {stat.filemode(a.st_mode)[0]} against {stat.filemode(b.st_mode)[0]}"]
    wrong = []
    if a.st_mode != b.st_mode:
        wrong.append(f"mode {stat.S_IMODE(a.st_mode):04o} against {stat.S_IMODE(b.st_mode):04o}")
    wrong += [
        f"{name} {getattr(a, 'st_' + name)} against {getattr(b, 'st_' + name)}"
        for name in ("uid", "gid", "mtime_ns")
        if getattr(a, "st_" + name) != getattr(b, "st_" + name)
    ]
    if (stat.S_ISBLK(a.st_mode) or stat.S_ISCHR(a.st_mode)) and a.st_rdev != b.st_rdev:
        wrong.append(f"device {a.st_rdev:#x} against {b.st_rdev:#x}")
    if stat.S_ISLNK(a.st_mode) and (here := os.readlink(left)) != (there := os.readlink(right)):
        wrong.append(f"target {here!r} against {there!r}")
    mine, theirs = (
        {name: value for name, value in xattrs(path).items() if name not in ignore} for path in (left, right)
    )
    if mine != theirs:
        wrong.append(f"xattrs {mine} against {theirs}")
    if stat.S_ISREG(a.st_mode) and (content := first_difference(left, right, holes)):
        wrong.append(content)
    return wrong


def differences(
    source: Path, replica: Path, holes: bool = False, limit: int = 20, ignore_xattrs: tuple[str, ...] = ()
) -> list[str]:
    """What differs between the trees, at most `limit` lines, each "path: source against replica".

    Both roots are compared too. An entry that is not on one side says so and is not looked at further.
    """
    left, right = os.fsencode(source), os.fsencode(replica)
    ours, theirs = names(source), names(replica)
    our_links, their_links = _links(ours), _links(theirs)
    lines: list[str] = []
    for path in sorted(ours.keys() | theirs.keys()):
        if len(lines) >= limit:
            lines.append("... and perhaps more")
            break
        if path not in theirs:
            lines.append(f"{path!r}: missing on the replica")
        elif path not in ours:
            lines.append(f"{path!r}: only on the replica")
        else:
            with within(left, path) as here, within(right, path) as there:
                wrong = _entry(here, there, ours[path], theirs[path], holes, ignore_xattrs)
            if our_links.get(path) != their_links.get(path):
                wrong.append(f"links {_show(our_links.get(path))} against {_show(their_links.get(path))}")
            lines += [f"{path!r}: {text}" for text in wrong]
    return lines


def _show(group: frozenset[bytes] | None) -> list[bytes]:
    return sorted(group or ())

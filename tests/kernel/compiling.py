"""Compiles on the host what the guests will load: `python -m tests.kernel.compiling RELEASE SHARED`.

Takes a kernel's release and a guest's shared directory, in which the guest has put its kernel's BTF (`btf`); leaves
there the cache of programs (`cache`) that a sender in the guest would make, at a tenth of the time that an emulated
processor needs for it, and `cache.done`. What is missing there, or was made from something else, a guest compiles.
"""

from __future__ import annotations

import sys
from pathlib import Path

from replicator.capture import tracepoint, vfs
from replicator.capture.btf import Btf
from replicator.capture.compile import compiled
from replicator.capture.direct import described
from replicator.capture.source import assemble
from tests.kernel.record import FILESYSTEMS

TRACED, CROWDED = "xfs", "ext4"
"""Where tests/kernel/guest has `trace` shown, and where it fills up functions that the sensor would hook."""


def compile_all(release: str, shared: Path) -> None:
    """The programs of both sensors for each filesystem."""
    for fstype in (*FILESYSTEMS, "tmpfs"):
        types = Btf.of_kernel((fstype, "iomap"), shared / "btf")
        functions, tracepoints = vfs.families_of(fstype, types), tracepoint.families_on(fstype, types)
        wanted: list[tuple[tuple[str, ...], tuple[str, ...]]] = [(functions, vfs.WRITES_TOLD), (tracepoints, ())]
        if fstype == TRACED:
            wanted.append((functions, (*vfs.WRITES_TOLD, "RSYNCFS_TRACE")))
        if fstype == CROWDED:
            wanted.append((vfs.with_tracepoints(functions, fstype, types), ()))
        for families, defines in wanted:
            compiled(assemble(families, fstype, types, defines, described(types)).text, shared / "cache", release)


if __name__ == "__main__":
    try:
        compile_all(sys.argv[1], Path(sys.argv[2]))
    finally:
        (Path(sys.argv[2]) / "cache.done").touch()  # who waits for it need not wait for what does not come

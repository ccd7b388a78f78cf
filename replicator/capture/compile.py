"""From C to eBPF instructions, once for each kernel and version.

Takes a text; gives an object. The compiler (BCC's clang) runs in a process of its own, and what it made is kept in the
cache. Failures of the environment are EnvironmentFaults with cause and cure.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import xxhash

from replicator.capture import cache
from replicator.capture.btf import BTF_DIRECTORY, BtfError, read_blobs
from replicator.capture.cache import CACHE
from replicator.capture.headers import header_tree
from replicator.capture.object import Object
from replicator.capture.remembered import RememberedTypes
from replicator.errors import EnvironmentFault
from replicator.resources import bcc_origin

_log = logging.getLogger(__name__)

_KIND = "programs"


def kernel_types(modules: tuple[str, ...] = ()) -> RememberedTypes:
    """What the running kernel says of its types, with those of `modules`. EnvironmentFault if it says nothing."""
    try:
        return RememberedTypes(read_blobs(modules, BTF_DIRECTORY))
    except OSError as fault:
        raise EnvironmentFault(
            f"cannot read the kernel's type information {fault.filename}: {fault.strerror}; use a kernel built with "
            "CONFIG_DEBUG_INFO_BTF=y"
        ) from fault
    except BtfError as fault:
        raise EnvironmentFault(f"the kernel's type information is not readable: {fault}; use another kernel") from fault


def compiled(text: str, directory: Path = CACHE, release: str | None = None) -> Object:
    """The object of one text for a kernel, or the running one: from the cache or made now."""
    tree = header_tree(directory, release)
    bcc = bcc_origin()
    made_by = f"{tree.name} {bcc} {bcc.stat().st_mtime_ns}"
    place = cache.place(directory, _KIND, xxhash.xxh3_128_hexdigest(f"{made_by} {text}".encode()))
    made = _object(cache.kept(place))
    if made is None:
        made = _compile(text, tree)
        cache.keep(place, made.dump())
    return made


def _object(kept: bytes | None) -> Object | None:
    try:
        return None if kept is None else Object.load(kept)
    except ValueError as fault:
        _log.debug("a compiled program cannot be used: %s", fault)
        return None


def _compile(text: str, tree: Path) -> Object:
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "replicator.capture.clang"],
        input=text.encode(),
        capture_output=True,
        check=False,
        env={**os.environ, "BCC_KERNEL_SOURCE": str(tree), "PYTHONPATH": os.pathsep.join(paths)},
    )
    if done.returncode == 0:
        try:
            return Object.load(done.stdout)
        except ValueError as fault:
            raise EnvironmentFault(
                f"the compiler of the eBPF programs answered nonsense ({fault}): try again"
            ) from fault
    said = done.stderr.decode(errors="replace").splitlines()
    _log.debug("BCC said: %s", "\n".join(said))
    if done.returncode == EnvironmentFault.exit_code and said:
        raise EnvironmentFault(said[-1])
    complaint = next((line for line in said if "error" in line.lower()), said[-1] if said else "it was killed")
    raise EnvironmentFault(
        f"the eBPF programs cannot be compiled for this kernel ({complaint.strip()}): use a kernel and BCC that this "
        "version of rsyncfs supports"
    )

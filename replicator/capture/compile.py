"""From C to eBPF instructions, once for each kernel and version.

Takes a text; gives an object. The compiler (BCC's clang) runs in a process of its own, and what it made is kept in a
cache directory under a name made of all that went into it. A kept object is complete or absent, and believed only if
nobody but root could have written it. Failures of the environment are EnvironmentFaults with cause and cure.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import xxhash

from replicator.capture.btf import BTF_DIRECTORY, Btf, BtfError
from replicator.capture.headers import CACHE, header_tree
from replicator.capture.object import Object
from replicator.errors import EnvironmentFault
from replicator.resources import bcc_origin

_log = logging.getLogger(__name__)

KEPT = 24
"""Objects in the cache; the oldest make room for new ones."""
_PREFIX = "programs-"


def kernel_types(modules: tuple[str, ...] = ()) -> Btf:
    """The running kernel's BTF with that of `modules`. EnvironmentFault if there is none."""
    try:
        return Btf.of_kernel(modules, BTF_DIRECTORY)
    except OSError as fault:
        raise EnvironmentFault(
            f"cannot read the kernel's type information {fault.filename}: {fault.strerror}; use a kernel built with "
            "CONFIG_DEBUG_INFO_BTF=y"
        ) from fault
    except BtfError as fault:
        raise EnvironmentFault(f"the kernel's type information is not readable: {fault}; use another kernel") from fault


def compiled(text: str, cache: Path = CACHE, release: str | None = None) -> Object:
    """The object of one text for a kernel, or the running one: from the cache or made now."""
    tree = header_tree(cache, release)
    bcc = bcc_origin()
    made_by = f"{tree.name} {bcc} {bcc.stat().st_mtime_ns}"
    place = cache / f"{_PREFIX}{xxhash.xxh3_128_hexdigest(f'{made_by} {text}'.encode())}"
    kept = _kept(place)
    if kept is None:
        kept = _compile(text, tree)
        _keep(place, kept)
    return kept


def _kept(place: Path) -> Object | None:
    try:
        with place.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
            return Object.load(file.read())
    except (OSError, ValueError) as fault:
        _log.debug("%s cannot be used: %s", place, fault)
        return None


def _keep(place: Path, made: Object) -> None:
    """Put it beside its place, sync it, rename it. A cache that cannot be written only costs time."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=".programs-", dir=place.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(made.dump())
                file.flush()
                os.fsync(file.fileno())
            Path(name).rename(place)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
        every = sorted(place.parent.glob(f"{_PREFIX}*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for old in every[KEPT:]:
            old.unlink(missing_ok=True)
    except OSError as fault:
        _log.debug("the compiled programs are not kept in %s: %s", place.parent, fault)


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

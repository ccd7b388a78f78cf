"""A directory exported by this kernel's NFS server and mounted from it, over loopback, without a user-space helper.

Takes a directory and a place to mount it; gives that place. What exportfs and rpc.mountd answer when the kernel asks is
written into its caches beforehand. Needs root, and a kernel that nobody else serves NFS with; all is gone at the end.
`Missing` if the kernel has no NFS.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.filesystems import run, unmount

NFSD = Path("/proc/fs/nfsd")
CACHES = Path("/proc/net/rpc")
PORT = 20049
GRACE = 10
"""Seconds in which clients of an earlier server may come back, and others wait; the kernel takes no less."""
NEVER = 2**31 - 1
"""When the answers expire: seconds since 1970."""
INSECURE_PORT, NO_SUBTREE_CHECK, FSID = 0x2, 0x400, 0x2000
FSID_NUMBER = 1
CLIENTS = "everybody"

ACL = "system.nfs4_acl"
_READ = 0x00120081
"""Data, attributes, the ACL itself; and synchronously."""


class Missing(Exception):
    """This kernel has no NFS server or client; it said so itself."""


@contextlib.contextmanager
def exported(directory: Path, point: Path) -> Iterator[Path]:
    """`directory` as the root of a server, mounted at `point`."""
    for module in ("nfsd", "nfsv4"):
        done = subprocess.run(["modprobe", module], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Missing(f"modprobe {module}: {done.stderr.strip()}")
    with contextlib.ExitStack() as stack:
        run("mount", "-t", "nfsd", "nfsd", NFSD)
        stack.callback(unmount, NFSD)
        stack.callback(_forget)
        flags = INSECURE_PORT | NO_SUBTREE_CHECK | FSID
        nobody = 65534
        _answer("auth.unix.ip", f"nfsd 127.0.0.1 {NEVER} {CLIENTS}")
        _answer("nfsd.export", f"{CLIENTS} {directory} {NEVER} {flags} {nobody} {nobody} 0")
        _answer("nfsd.fh", f"{CLIENTS} {FSID_NUMBER} \\x00000000 {NEVER} {directory}")
        (NFSD / "versions").write_text("-3 +4.2\n")
        for name in ("nfsv4leasetime", "nfsv4gracetime"):
            (NFSD / name).write_text(f"{GRACE}\n")
        (NFSD / "portlist").write_text(f"tcp {PORT}\n")
        stack.callback((NFSD / "threads").write_text, "0\n")
        (NFSD / "threads").write_text("2\n")
        with contextlib.suppress(OSError):  # without a daemon that keeps track of clients it has to be waited for
            (NFSD / "v4_end_grace").write_text("Y\n")
        options = f"addr=127.0.0.1,clientaddr=127.0.0.1,vers=4.2,port={PORT}"
        run("mount", "-i", "-t", "nfs4", "-o", options, "127.0.0.1:/", point)
        stack.callback(unmount, point)
        yield point


def _answer(cache: str, line: str) -> None:
    """Each write is one answer."""
    descriptor = os.open(CACHES / cache / "channel", os.O_WRONLY)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def _forget() -> None:
    for cache in ("auth.unix.ip", "nfsd.export", "nfsd.fh"):
        (CACHES / cache / "flush").write_text(f"{int(time.time()) + 1}\n")


def let_read(path: Path, uid: int) -> None:
    """Give a user the right to read, in the file's NFSv4 ACL: the kernel's client hands it on as it is."""
    acl = os.getxattr(path, ACL)
    (count,) = struct.unpack_from(">I", acl)
    who = str(uid).encode()
    entry = struct.pack(">4I", 0, 0, _READ, len(who)) + who + bytes(-len(who) % 4)
    os.setxattr(path, ACL, struct.pack(">I", count + 1) + acl[4:] + entry)

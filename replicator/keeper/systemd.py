"""systemd's store for descriptors: a service's descriptors that systemd holds while the service is started again.

Takes the environment of the process; speaks sd_notify(3). Whether systemd has room for them is not said: it takes
FileDescriptorStoreMax= in the unit. If it has none, the next process gets nothing, and knows.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, MutableMapping
from typing import Final

_FIRST: Final = 3  # SD_LISTEN_FDS_START
_PREFIX: Final = "rsyncfs-"


def received(environ: MutableMapping[str, str]) -> dict[str, int]:
    """The descriptors that systemd gives this process, of those that are ours. The variables are removed."""
    owner, count, names = (environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if owner != str(os.getpid()) or not count.isdecimal():
        return {}
    found: dict[str, int] = {}
    for descriptor, name in zip(range(_FIRST, _FIRST + int(count)), names.split(":"), strict=False):
        os.set_inheritable(descriptor, False)
        known = name.removeprefix(_PREFIX)
        if name == known or known in found:
            os.close(descriptor)
        else:
            found[known] = descriptor
    return found


class SystemdStore:
    """A `Store`."""

    def __init__(self, address: str, left: dict[str, int]) -> None:
        """`address`: of NOTIFY_SOCKET; `left`: what was received, which is this object's own then."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._left = left
        self._named = set(left)

    def take(self) -> dict[str, int]:
        """See `Store.take`."""
        left, self._left = self._left, {}
        return left

    def put(self, descriptors: Mapping[str, int]) -> None:
        """See `Store.put`."""
        for name, descriptor in descriptors.items():
            self._remove(name)
            # systemd need not watch it for an end: what is readable there is not for systemd
            self._tell(f"FDSTORE=1\nFDNAME={_PREFIX}{name}\nFDPOLL=0", [descriptor])
        self._named |= set(descriptors)

    def drop(self) -> None:
        """See `Store.drop`."""
        for descriptor in self.take().values():
            os.close(descriptor)
        for name in self._named:
            self._remove(name)
        self._named = set()

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):  # who does not listen has no store either
            self._tell(f"FDSTOREREMOVE=1\nFDNAME={_PREFIX}{name}", [])

    def _tell(self, words: str, descriptors: list[int]) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(self._address)
            socket.send_fds(sock, [words.encode()], descriptors)

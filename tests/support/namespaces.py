"""Two network namespaces joined by one cable that a test can cut.

Takes nothing but root; gives the names of the namespaces and the addresses at both ends of the veth pair. Both
namespaces vanish with the context. Commands are put inside by `inside(...)`, which changes the network only: mounts and
/sys stay those of the host, so tracing works as outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pyroute2 import IPRoute, NetNS, netns

Value = TypeVar("Value")

CLONE_NEWNET = 0x40000000
PREFIX = 24


class Cable:
    """The veth pair between a `near` namespace (the sender's) and a `far` one (the receiver's)."""

    near_address = "10.77.0.1"
    far_address = "10.77.0.2"

    def __init__(self, tag: str) -> None:
        """`tag` makes the names unique; at most 8 characters, for interface names are short."""
        self.near, self.far = f"rsyncfs-{tag}-n", f"rsyncfs-{tag}-f"
        self._near_link, self._far_link = f"vn{tag}", f"vf{tag}"

    def lay(self) -> None:
        """Make both namespaces and join them."""
        netns.create(self.near)
        netns.create(self.far)
        with IPRoute() as host:
            host.link("add", ifname=self._near_link, kind="veth", peer=self._far_link)
            for link, name in ((self._near_link, self.near), (self._far_link, self.far)):
                host.link("set", index=host.link_lookup(ifname=link)[0], net_ns_fd=name)
        for link, name, address in (
            (self._near_link, self.near, self.near_address),
            (self._far_link, self.far, self.far_address),
        ):
            with NetNS(name) as space:
                space.link("set", index=space.link_lookup(ifname="lo")[0], state="up")
                index = space.link_lookup(ifname=link)[0]
                space.addr("add", index=index, address=address, prefixlen=PREFIX)
                space.link("set", index=index, state="up")

    def cut(self) -> None:
        """Pull the cable at the receiver's end; the sender sees its carrier go."""
        self._set_far("down")

    def mend(self) -> None:
        """Plug it in again."""
        self._set_far("up")

    def _set_far(self, state: str) -> None:
        with NetNS(self.far) as space:
            space.link("set", index=space.link_lookup(ifname=self._far_link)[0], state=state)

    def remove(self) -> None:
        """Remove both namespaces, and with them the cable."""
        for name in (self.near, self.far):
            with contextlib.suppress(OSError):
                netns.remove(name)


def inside(name: str | None) -> list[str]:
    """The words to put before a command so that it runs in that network namespace; none for the host's."""
    return ["nsenter", f"--net=/run/netns/{name}"] if name else []


def call_inside(name: str | None, function: Callable[[], Value]) -> Value:
    """Call `function` in a thread that has entered the namespace; what it raises is raised here."""
    if name is None:
        return function()

    def enter() -> Value:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{name}", "rb") as space:
            if libc.setns(space.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
        return function()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(enter).result()


@contextlib.contextmanager
def cable(tag: str) -> Iterator[Cable]:
    """A cable between two new namespaces, for as long as the context lasts."""
    made = Cable(tag)
    try:
        made.lay()
        yield made
    finally:
        made.remove()

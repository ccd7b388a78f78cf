"""Notices that a network path may have come back, so that a sender reconnects at once instead of at its next attempt.

Takes rtnetlink's notices of links, addresses and routes; gives a pollable descriptor and a yes or no. It does not know
which path leads to the peer: yes means "try now".
"""

from __future__ import annotations

import errno
import socket

from pyroute2.netlink import rtnl
from pyroute2.netlink.rtnl.ifinfmsg import IFF_LOWER_UP, IFF_UP
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

GROUPS = (
    rtnl.RTMGRP_LINK
    | rtnl.RTMGRP_IPV4_IFADDR
    | rtnl.RTMGRP_IPV6_IFADDR
    | rtnl.RTMGRP_IPV4_ROUTE
    | rtnl.RTMGRP_IPV6_ROUTE
)

_BETTER = frozenset({"RTM_NEWADDR", "RTM_NEWROUTE"})


class PathWatch:
    """A subscription to rtnetlink. Read by the loop itself: pyroute2's own sockets run an asyncio loop inside, so only
    its parser is used here."""

    def __init__(self) -> None:
        """OSError if the kernel or a sandbox refuses; see `open_watch()`."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        try:
            self._socket.bind((0, GROUPS))
        except OSError:
            self._socket.close()
            raise
        self._parser = MarshalRtnl()

    def fileno(self) -> int:
        """Readable when there are notices."""
        return self._socket.fileno()

    def changed(self) -> bool:
        """Read all notices; whether one of them can mean a better path: a link, an address or a route came up.

        Notices that were lost (the socket's buffer was full) or cannot be read count as yes. What only went away
        does not: no attempt succeeds because of that.
        """
        better = False
        while True:
            try:
                data, sender = self._socket.recvfrom(1 << 17)
            except BlockingIOError:
                return better
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    better = True
                    continue
                return True
            if sender[0] == 0 and not better:  # port 0 is the kernel
                better = self._better(data)

    def close(self) -> None:
        """Unsubscribe."""
        self._socket.close()

    def _better(self, data: bytes) -> bool:
        try:
            return any(self._came_up(notice) for notice in self._parser.parse(data))
        except Exception:  # noqa: BLE001 (whatever the parser does not understand is a change all the same)
            return True

    @staticmethod
    def _came_up(notice: dict[str, object]) -> bool:
        if notice.get("event") == "RTM_NEWLINK":
            flags = notice.get("flags")
            return isinstance(flags, int) and flags & IFF_UP != 0 and flags & IFF_LOWER_UP != 0
        return notice.get("event") in _BETTER


def open_watch() -> PathWatch | None:
    """A watch, or None where netlink is not to be had: reconnecting then waits for the back-off alone."""
    try:
        return PathWatch()
    except OSError:
        return None

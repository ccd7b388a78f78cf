"""Notices that a network path may have come back, so that a sender reconnects at once instead of at its next attempt.

Takes rtnetlink's notices of links, addresses and routes; gives a pollable descriptor and a yes or no. It does not know
which path leads to the peer: yes means "try now".
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

# Numbers from rtnetlink(7) and netdevice(7).
GROUPS: Final = 0x1 | 0x10 | 0x100 | 0x40 | 0x400
"""Links; addresses and routes of IPv4 and IPv6."""
_NEW_LINK, _NEW_ADDRESS, _NEW_ROUTE = 16, 20, 24
_UP, _LOWER_UP = 1, 1 << 16
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, changed ones


class PathWatch:
    """A subscription to rtnetlink."""

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
                better = came_up(data)

    def close(self) -> None:
        """Unsubscribe."""
        self._socket.close()


def came_up(notices: bytes) -> bool:
    """Whether one of these notices says that a link, an address or a route came up, or is not to be understood."""
    at = 0
    while at < len(notices):
        if len(notices) - at < _HEADER.size:
            return True
        length, kind, *_ = _HEADER.unpack_from(notices, at)
        if not _HEADER.size <= length <= len(notices) - at:
            return True
        if kind in (_NEW_ADDRESS, _NEW_ROUTE):
            return True
        if kind == _NEW_LINK:
            if length < _HEADER.size + _LINK.size:
                return True
            flags = _LINK.unpack_from(notices, at + _HEADER.size)[3]
            if flags & _UP and flags & _LOWER_UP:
                return True
        at += length + -length % 4
    return False


def open_watch() -> PathWatch | None:
    """A watch, or None where netlink is not to be had: reconnecting then waits for the back-off alone."""
    try:
        return PathWatch()
    except OSError:
        return None

"""Frames: what one TCP connection carries, one after the other.

Takes and gives bytes; does no I/O and knows nothing of what the payloads mean. A frame is a header of 32 bytes, big
endian, and a payload:

    0   4s  magic          "rsfs"
    4   u8  version        of this layout
    5   u8  type           `Type`
    6   u16 flags          must be 0
    8   u32 length         of the payload, bytes
    12  u32 header check   xxh32 of the header without this field
    16  u64 number         epoch, request or token
    24  u64 payload check  xxh3_64 of the payload

The header has its own check so that a damaged length is noticed at once, not after the gigabytes it promises. The
checks find damage, not malice: who the peer is, is TLS's business.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import xxhash

from replicator.errors import RemoteError

Buffer = bytes | bytearray | memoryview

MAGIC = b"rsfs"
VERSION = 1
"""Of the frame's layout. What the frames mean is negotiated by Hello and Welcome."""

HEADER = struct.Struct("!4sBBHIIQQ")
_HEAD = struct.Struct("!4sBBHI")  # what stands before the header check
_TAIL = struct.Struct("!QQ")  # and after it
_CHECK = struct.Struct("!I")

MAX_NUMBER = 2**64 - 1
STAGING = 64 * 1024
"""Bytes asked of the socket at once while no big payload is expected."""


class Type(IntEnum):
    """What a frame is, for message.py."""

    HELLO = 1
    WELCOME = 2
    REFUSE = 3
    FACTS = 4
    DATA = 5
    END = 6
    APPLIED = 7
    DURABLE = 8
    PING = 9
    PONG = 10
    CHECK = 11
    CHECKED = 12
    BYE = 13


DATA_PREFIX = 12
"""Bytes that a DATA frame's payload has in front of the raw bytes: the inode's index and the offset."""

MAX_DATA = 64 * 2**20
MAX_FACTS = 32 * 2**20
LIMITS: dict[int, int] = {
    Type.HELLO: 64 * 1024,
    Type.WELCOME: 64 * 1024,
    Type.REFUSE: 64 * 1024,
    Type.FACTS: MAX_FACTS,
    Type.DATA: MAX_DATA + DATA_PREFIX,
    Type.END: 12,
    Type.APPLIED: MAX_FACTS,
    Type.DURABLE: MAX_FACTS,
    Type.PING: 0,
    Type.PONG: 0,
    Type.CHECK: MAX_FACTS,
    Type.CHECKED: MAX_FACTS,
    Type.BYE: 64 * 1024,
}
"""The longest payload of each type, bytes."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it arrived, its checks verified. `payload` belongs to the frame; nobody writes to it again."""

    type: Type
    number: int
    payload: bytes | memoryview

    @property
    def size(self) -> int:
        """Bytes of it on the wire."""
        return HEADER.size + len(self.payload)


def header(kind: Type, number: int, payload: Sequence[Buffer]) -> bytes:
    """The header for a payload given in parts, which travel behind it as they are.

    ValueError if the payload is longer than its type allows.
    """
    length = 0
    digest = xxhash.xxh3_64()
    for part in payload:
        length += len(part)
        digest.update(part)
    if length > LIMITS[kind]:
        raise ValueError(f"a {kind.name} frame of {length} bytes exceeds the limit of {LIMITS[kind]}")
    head = _HEAD.pack(MAGIC, VERSION, kind, 0, length)
    tail = _TAIL.pack(number, digest.intdigest())
    return head + _CHECK.pack(xxhash.xxh32_intdigest(head + tail)) + tail


class Decoder:
    """Bytes in, frames out.

    Ask `buffer()` where the next bytes belong, put some there, say how many with `received()`: a big payload is so
    received in place, without a copy. `feed()` does the same for bytes that are elsewhere. After a RemoteError the
    decoder is spent: there is no way to find the next frame.

    Holds at most one staging buffer and one payload, the longest a frame may have.
    """

    def __init__(self) -> None:
        self._staging = bytearray(STAGING)
        self._view = memoryview(self._staging)
        self._start = 0  # of what is unread in the staging buffer
        self._stop = 0
        self._payload: memoryview | None = None  # a big one, being received in place
        self._filled = 0
        self._header: tuple[Type, int, int] = (Type.BYE, 0, 0)
        self._spent: str | None = None

    @property
    def idle(self) -> bool:
        """Whether the bytes received so far end where a frame ends."""
        return self._payload is None and self._start == self._stop

    def buffer(self) -> memoryview:
        """Where the next bytes belong; never empty, writable."""
        if self._payload is not None:
            return self._payload[self._filled :]
        return self._view[self._stop :]

    def received(self, count: int) -> list[Frame]:
        """Take note of `count` bytes written to the start of `buffer()`; the frames that they complete.

        RemoteError if the bytes are not what the protocol allows; if frames came before them, those are given first
        and `verify()` and the next call raise it.
        """
        self.verify()
        frames: list[Frame] = []
        try:
            self._received(count, frames)
        except RemoteError as error:
            self._spent = str(error)
            if not frames:
                raise
        return frames

    def verify(self) -> None:
        """Raise the RemoteError that is still owed."""
        if self._spent is not None:
            raise RemoteError(self._spent)

    def feed(self, data: Buffer) -> list[Frame]:
        """Copy `data` in; the frames that it completes. RemoteError as `received()`."""
        frames: list[Frame] = []
        rest = memoryview(data)
        while len(rest):
            target = self.buffer()
            count = min(len(target), len(rest))
            target[:count] = rest[:count]
            frames += self.received(count)
            rest = rest[count:]
        return frames

    def _received(self, count: int, frames: list[Frame]) -> None:
        if self._payload is not None:
            self._filled += count
            if self._filled == len(self._payload):
                payload, self._payload = self._payload, None
                frames.append(self._verified(payload.toreadonly()))
            return
        self._stop += count
        while self._stop - self._start >= HEADER.size:
            kind, length, number, check = parse_header(self._view[self._start : self._start + HEADER.size])
            self._header = (kind, number, check)
            body = self._start + HEADER.size
            if self._stop - body >= length:
                self._start = body + length
                frames.append(self._verified(bytes(self._view[body : self._start])))
                continue
            if length > STAGING // 2:
                self._payload = memoryview(bytearray(length))
                self._filled = self._stop - body
                self._payload[: self._filled] = self._view[body : self._stop]
                self._start = self._stop
            break
        else:
            if self._stop - self._start:
                # Foreign bytes are told apart before a whole header of them has arrived.
                check_start(self._view[self._start : self._stop])
        self._compact()

    def _compact(self) -> None:
        """Move what is unread to the front, so that at least half of the staging buffer is free."""
        if self._start == self._stop:
            self._start = self._stop = 0
        elif self._start:
            rest = bytes(self._view[self._start : self._stop])
            self._view[: len(rest)] = rest
            self._start, self._stop = 0, len(rest)

    def _verified(self, payload: bytes | memoryview) -> Frame:
        kind, number, check = self._header
        if xxhash.xxh3_64_intdigest(payload) != check:
            raise RemoteError(f"a {kind.name} frame arrived damaged: its payload does not match its checksum")
        return Frame(kind, number, payload)


def check_start(start: Buffer) -> None:
    """RemoteError if these first bytes (at least one) cannot begin a frame."""
    found = bytes(start[: len(MAGIC)])
    if MAGIC.startswith(found):
        return
    if found[:1] in (b"\x15", b"\x16"):  # an alert, a handshake
        raise RemoteError("the peer speaks TLS and this side does not: give both the --tls-* options, or neither")
    raise RemoteError(f"the peer does not speak the rsyncfs protocol: it began with {found!r}")


def parse_header(data: Buffer) -> tuple[Type, int, int, int]:
    """(type, payload length, number, payload check) of 32 bytes. RemoteError if they are no header of this version."""
    magic, version, kind, flags, length, check, number, payload_check = HEADER.unpack(data)
    if magic != MAGIC:
        check_start(data)
    if version != VERSION:
        raise RemoteError(f"the peer's frames are of version {version}, this side knows only {VERSION}: update one")
    raw = bytes(data)
    if xxhash.xxh32_intdigest(raw[:12] + raw[16:]) != check:
        raise RemoteError("a frame's header arrived damaged: it does not match its checksum")
    try:
        known = Type(kind)
    except ValueError:
        raise RemoteError(f"the peer sent a frame of unknown type {kind}") from None
    if flags:
        raise RemoteError(f"the peer sent a {known.name} frame with unknown flags {flags:#x}")
    if length > LIMITS[known]:
        raise RemoteError(
            f"the peer sent a {known.name} frame of {length} bytes, more than the {LIMITS[known]} allowed"
        )
    return known, length, number, payload_check

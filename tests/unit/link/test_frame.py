"""Frames: what comes out is what went in, and damage never comes out."""

from __future__ import annotations

import struct

import pytest
import xxhash

from replicator.errors import RemoteError
from replicator.link import frame
from replicator.link.frame import HEADER, STAGING, Decoder, Frame, Type


def whole(kind: Type, number: int, payload: bytes) -> bytes:
    return frame.header(kind, number, [payload]) + payload


BIG = bytes(range(256)) * (STAGING // 64)  # four staging buffers long: received in place
FRAMES = [
    Frame(Type.PING, 0, b""),
    Frame(Type.CHECK, 7, b"{}"),
    Frame(Type.DATA, 2**64 - 1, BIG),
    Frame(Type.BYE, 0, b"x" * (STAGING // 2)),
    Frame(Type.CHECK, 3, b"y" * (STAGING // 2 + 1)),
    Frame(Type.DURABLE, 9, b""),
]
STREAM = b"".join(whole(one.type, one.number, bytes(one.payload)) for one in FRAMES)


def plain(frames: list[Frame]) -> list[Frame]:
    return [Frame(one.type, one.number, bytes(one.payload)) for one in frames]


def test_header_is_32_bytes() -> None:
    assert HEADER.size == 32


@pytest.mark.parametrize("step", [1, 7, 31, 32, 33, 1000, STAGING - 1, STAGING, len(STREAM)])
def test_every_cut_of_the_stream_gives_the_same_frames(step: int) -> None:
    decoder = Decoder()
    frames = [found for at in range(0, len(STREAM), step) for found in decoder.feed(STREAM[at : at + step])]
    assert plain(frames) == FRAMES
    assert decoder.idle


def test_a_frame_comes_with_its_last_byte_and_not_before() -> None:
    decoder = Decoder()
    data = whole(Type.CHECK, 5, b'{"a":1}')
    assert decoder.feed(data[:-1]) == []
    assert not decoder.idle
    assert plain(decoder.feed(data[-1:] + data[:20])) == [Frame(Type.CHECK, 5, b'{"a":1}')]
    assert not decoder.idle


def test_frames_that_were_given_out_are_not_touched_by_later_bytes() -> None:
    decoder = Decoder()
    first = decoder.feed(whole(Type.CHECK, 1, b"first")) + decoder.feed(whole(Type.DATA, 1, BIG))
    for _ in range(5):
        decoder.feed(whole(Type.CHECK, 2, b"other") + whole(Type.DATA, 2, bytes(len(BIG))))
    assert [bytes(one.payload) for one in first] == [b"first", BIG]


def test_a_big_payload_is_received_in_place() -> None:
    decoder = Decoder()
    data = whole(Type.DATA, 1, BIG)
    assert decoder.feed(data[:100]) == []
    assert len(decoder.buffer()) == len(data) - 100
    target = decoder.buffer()
    target[:] = data[100:]
    (found,) = decoder.received(len(target))
    assert isinstance(found.payload, memoryview)
    assert found.payload.obj is target.obj
    assert found.payload.readonly


def test_size_is_that_on_the_wire() -> None:
    data = whole(Type.CHECK, 1, b"hello")
    assert Decoder().feed(data)[0].size == len(data)


@pytest.mark.parametrize("at", range(HEADER.size + 5))
def test_any_damaged_byte_is_noticed_at_once(at: int) -> None:
    data = bytearray(whole(Type.CHECK, 1, b"hello"))
    for bit in range(8):
        damaged = bytearray(data)
        damaged[at] ^= 1 << bit
        with pytest.raises(RemoteError):
            Decoder().feed(damaged)


def test_a_decoder_that_failed_stays_failed() -> None:
    decoder = Decoder()
    with pytest.raises(RemoteError):
        decoder.feed(b"GET / HTTP/1.1\r\n")
    with pytest.raises(RemoteError):
        decoder.feed(whole(Type.PING, 1, b""))


def test_what_came_before_the_damage_is_given_and_then_the_error() -> None:
    decoder = Decoder()
    good = whole(Type.CHECK, 1, b"{}")
    assert len(decoder.feed(good + good + b"HTTP")) == 2
    with pytest.raises(RemoteError):
        decoder.verify()
    with pytest.raises(RemoteError):
        decoder.feed(good)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GET / HTTP/1.1\r\n", "does not speak the rsyncfs protocol"),
        (b"S", "does not speak the rsyncfs protocol"),
        (b"\x16\x03\x01\x02\x00", "--tls-"),
        (b"\x15\x03", "--tls-"),
        (b"rsfs\x02" + bytes(27), "version 2"),
    ],
)
def test_foreign_peers_are_told_apart_by_their_first_bytes(data: bytes, says: str) -> None:
    with pytest.raises(RemoteError, match=says):
        Decoder().feed(data)


def test_too_long_a_payload_is_refused_before_it_is_sent_and_before_it_is_received() -> None:
    limit = frame.LIMITS[Type.BYE]
    with pytest.raises(ValueError, match="exceeds"):
        frame.header(Type.BYE, 0, [bytes(limit + 1)])
    allowed = frame.LIMITS[Type.BYE]
    frame.LIMITS[Type.BYE] = limit + 1
    try:
        head = frame.header(Type.BYE, 0, [bytes(limit + 1)])
    finally:
        frame.LIMITS[Type.BYE] = allowed
    with pytest.raises(RemoteError, match="more than"):
        Decoder().feed(head)


def test_unknown_types_and_flags_are_refused() -> None:
    def made(kind: int, flags: int) -> bytes:
        head = struct.pack("!4sBBHI", frame.MAGIC, frame.VERSION, kind, flags, 0)
        tail = struct.pack("!QQ", 0, xxhash.xxh3_64_intdigest(b""))
        return head + struct.pack("!I", xxhash.xxh32_intdigest(head + tail)) + tail

    assert Decoder().feed(made(Type.PING, 0))
    with pytest.raises(RemoteError, match="type 99"):
        Decoder().feed(made(99, 0))
    with pytest.raises(RemoteError, match="flags"):
        Decoder().feed(made(Type.PING, 4))

"""Messages: the greeting between versions, and payloads that no message has."""

from __future__ import annotations

import orjson
import pytest

from replicator.errors import RemoteError
from replicator.link import message as m
from replicator.link.frame import Decoder, Frame, Type
from replicator.link.session import version_refusal
from replicator.model import FileId

HELLO = m.Hello("uuid", FileId(0, 0, 2, 0), 2**64 - 1, hostname="host", ancestors=((2**64 - 1, 2),))


def through(message: m.Message) -> m.Message:
    (found,) = Decoder().feed(b"".join(m.encode(message)))
    return m.decode(found)


def test_data_is_not_copied_on_its_way_out() -> None:
    data = bytearray(1 << 20)
    parts = m.encode(m.Data(1, 0, 0, data))
    assert parts[-1] is data
    assert len(parts) == 2


def test_a_greeting_of_a_later_version_is_understood_as_far_as_its_versions() -> None:
    payload = orjson.dumps({"oldest": 7, "newest": 9, "all": "else", "is": "different"})
    hello = m.decode(Frame(Type.HELLO, 0, payload))
    assert isinstance(hello, m.Hello)
    refusal = version_refusal(hello)
    assert refusal is not None
    assert refusal.permanent
    assert refusal.code == "version"
    assert "7 to 9" in refusal.reason


def test_a_greeting_may_offer_later_versions_and_know_more_keys() -> None:
    tree = orjson.loads(m.encode(HELLO)[0][32:])
    tree |= {"newest": m.PROTOCOL + 1, "novelty": True}
    hello = m.decode(Frame(Type.HELLO, 0, orjson.dumps(tree)))
    assert isinstance(hello, m.Hello)
    assert hello.source == "uuid"
    assert version_refusal(hello) is None
    with pytest.raises(RemoteError):
        m.decode(Frame(Type.HELLO, 0, orjson.dumps(tree | {"newest": m.PROTOCOL})))


def test_a_host_name_that_cannot_be_printed_is_escaped() -> None:
    hello = through(m.Hello("uuid", FileId(0, 0, 2, 0), 1, hostname="a\nb\udcff"))
    assert isinstance(hello, m.Hello)
    assert hello.hostname == "a\\nb\\udcff"


def test_reasons_are_cut_and_printable() -> None:
    said = through(m.Bye("\x1b[31m" + "x" * 10_000))
    assert isinstance(said, m.Bye)
    assert said.reason.isprintable()
    with pytest.raises(RemoteError):
        m.decode(Frame(Type.BYE, 0, b'{"reason":"\\u001b[31m"}'))


@pytest.mark.parametrize(
    ("kind", "number", "payload"),
    [
        (Type.DATA, 1, b""),
        (Type.DATA, 1, bytes(12)),
        (Type.DATA, 0, bytes(13)),
        (Type.DATA, 1, bytes(4) + b"\xff" * 8 + b"x"),
        (Type.DATA, 1, bytes(4) + (2**63 - 1).to_bytes(8, "big") + b"x"),
        (Type.END, 1, bytes(11)),
        (Type.END, 0, bytes(12)),
        (Type.FACTS, 0, b"{}"),
        (Type.FACTS, 2**63, b"{}"),
        (Type.APPLIED, 0, b"{}"),
        (Type.DURABLE, 0, b""),
        (Type.CHECK, 1, b"[]"),
        (Type.CHECKED, 1, b"\xff"),
        (Type.REFUSE, 0, b'{"code":"x","reason":"y"}'),
        (Type.REFUSE, 0, b'{"code":"x","reason":"y","permanent":1}'),
        (Type.BYE, 0, b"{}"),
        (Type.HELLO, 0, b'{"oldest":2,"newest":1}'),
        (Type.HELLO, 0, b'{"oldest":3,"newest":3}'),
    ],
)
def test_payloads_that_no_message_has_are_refused(kind: Type, number: int, payload: bytes) -> None:
    with pytest.raises(RemoteError):
        m.decode(Frame(kind, number, payload))


@pytest.mark.parametrize("key", sorted(m.Hello.__slots__))
def test_a_greeting_without_a_field_is_refused(key: str) -> None:
    tree = orjson.loads(m.encode(HELLO)[0][32:])
    del tree[key]
    if key == "replica":
        return  # the same as null
    with pytest.raises(RemoteError):
        m.decode(Frame(Type.HELLO, 0, orjson.dumps(tree)))


@pytest.mark.parametrize(
    ("key", "value"),
    [("window_bytes", 0), ("window_epochs", 0), ("empty", 1), ("durable", -1), ("instance", 2**64), ("replica", None)],
)
def test_a_welcome_with_a_bad_field_is_refused(key: str, value: object) -> None:
    tree = orjson.loads(m.encode(m.Welcome("uuid", True))[0][32:])
    try:
        payload = orjson.dumps(tree | {key: value})
    except orjson.JSONEncodeError:
        payload = orjson.dumps(tree | {key: float(str(value))})
    with pytest.raises(RemoteError):
        m.decode(Frame(Type.WELCOME, 0, payload))

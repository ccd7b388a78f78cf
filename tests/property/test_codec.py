"""The codec against everything that can be said, and against noise."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.errors import RemoteError
from replicator.link import frame
from replicator.link import message as m
from replicator.link.epoch import Epoch, EpochAssembler, messages
from replicator.link.facts import decode_answer, decode_facts, encode_facts
from replicator.link.frame import Decoder, Frame, Type
from replicator.model import (
    END_OF_FILE,
    Answer,
    Attributes,
    Extent,
    Facts,
    FileId,
    InodeFact,
    Kind,
    Refusal,
    Slot,
    SlotFact,
)

numbers = st.integers(0, END_OF_FILE)
u64 = st.integers(0, 2**64 - 1)
epochs = st.integers(1, END_OF_FILE)
ids = st.builds(FileId, st.integers(0, 255), numbers, numbers, st.integers(0, 2**32 - 1))
names = (
    st.binary(min_size=1, max_size=255)
    .map(lambda name: name.replace(b"/", b"\xff").replace(b"\0", b"\n"))
    .filter(lambda name: name not in (b".", b".."))
)
slots = st.builds(Slot, ids, names)
texts = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=60)


@st.composite
def extents(draw: st.DrawFn) -> tuple[Extent, ...]:
    edges = sorted(draw(st.sets(numbers, max_size=8)))
    return tuple(Extent(start, stop - start) for start, stop in zip(edges[::2], edges[1::2], strict=False))


@st.composite
def inodes(draw: st.DrawFn) -> InodeFact:
    kind = draw(st.sampled_from(Kind))
    file = kind is Kind.FILE
    check = draw(st.booleans())
    target = st.binary(min_size=1, max_size=300).map(lambda path: path.replace(b"\0", b"\x80"))
    return InodeFact(
        id=draw(ids),
        kind=kind,
        attributes=Attributes(
            mode=draw(st.integers(0, 0o7777)),
            uid=draw(st.integers(0, 2**32 - 2)),
            gid=draw(st.integers(0, 2**32 - 2)),
            mtime_ns=draw(st.integers(-(2**63) * 10**9, 2**63 * 10**9 - 1)),
            ctime_ns=draw(st.integers(-(2**63), 2**63 - 1)),
            rdev=draw(numbers),
            target=draw(target) if kind is Kind.SYMLINK else b"",
            xattrs=draw(
                st.dictionaries(
                    st.binary(min_size=1, max_size=40).map(lambda name: name.replace(b"\0", b"\xe9")),
                    st.binary(max_size=100),
                    max_size=3,
                )
            ),
        ),
        size=draw(numbers) if file else 0,
        whole=draw(st.booleans()),
        partial=file and not check and draw(st.booleans()),
        check=check,
        deep=file and check and draw(st.booleans()),
        settled=draw(st.booleans()),
        lowest=draw(st.none() | numbers) if file else None,
        data=draw(extents()) if file and not check else (),
        holes=draw(extents()) if file and not check else (),
    )


facts = st.builds(
    Facts,
    epochs,
    st.lists(st.builds(SlotFact, slots, st.none() | ids), max_size=5).map(tuple),
    st.lists(inodes(), max_size=4).map(tuple),
    st.lists(ids, max_size=4).map(tuple),
)
refusals = st.lists(st.builds(Refusal, ids, texts), max_size=4).map(tuple)
answers = st.builds(
    Answer,
    epochs,
    st.lists(ids, max_size=4).map(tuple),
    st.lists(slots, max_size=4).map(tuple),
    refusals,
    st.lists(ids, max_size=4).map(tuple),
)
uuids = st.uuids().map(str)
bodies = st.dictionaries(st.text(max_size=10), st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts)
spoken: st.SearchStrategy[m.Message] = st.one_of(
    st.builds(
        m.Hello,
        source=uuids,
        root=ids,
        instance=u64,
        durable=numbers,
        replica=st.none() | uuids,
        fstype=texts,
        hostname=texts,
        boot_id=uuids,
        ancestors=st.lists(st.tuples(u64, u64), max_size=6).map(tuple),
        software=texts,
    ),
    st.builds(
        m.Welcome,
        replica=uuids,
        empty=st.booleans(),
        instance=st.none() | u64,
        durable=numbers,
        open=numbers,
        window_bytes=st.integers(1, END_OF_FILE),
        window_epochs=st.integers(1, END_OF_FILE),
        software=texts,
    ),
    st.builds(m.Refuse, texts, texts, st.booleans()),
    st.builds(m.FactsFrame, facts),
    st.builds(m.Data, epochs, st.integers(0, 2**32 - 1), st.integers(0, 2**62), st.binary(min_size=1, max_size=5000)),
    st.builds(m.End, epochs, st.integers(0, 2**32 - 1), u64),
    st.builds(m.Applied, answers),
    st.builds(m.Durable, epochs, refusals),
    st.builds(m.Ping, u64),
    st.builds(m.Pong, u64),
    st.builds(m.Check, u64, bodies),
    st.builds(m.Checked, u64, bodies),
    st.builds(m.Bye, texts),
)


def wire(*said: m.Message) -> bytes:
    return b"".join(b"".join(m.encode(one)) for one in said)


def heard(decoder: Decoder, data: bytes) -> list[m.Message]:
    return [m.decode(found) for found in decoder.feed(data)]


@given(st.lists(spoken, min_size=1, max_size=4))
def test_what_is_said_is_heard_whole(said: list[m.Message]) -> None:
    assert heard(Decoder(), wire(*said)) == said


@given(spoken)
@settings(max_examples=50)
def test_what_is_said_is_heard_byte_by_byte(said: m.Message) -> None:
    decoder = Decoder()
    data = wire(said)
    for at in range(len(data) - 1):
        assert heard(decoder, data[at : at + 1]) == []
    assert heard(decoder, data[-1:]) == [said]


@given(spoken, spoken, st.data())
def test_what_follows_a_message_is_left_for_the_next(said: m.Message, then: m.Message, data: st.DataObject) -> None:
    decoder = Decoder()
    follows = wire(then)
    cut = data.draw(st.integers(0, len(follows) - 1))
    assert heard(decoder, wire(said) + follows[:cut]) == [said]
    assert heard(decoder, follows[cut:]) == [then]


@given(spoken, st.data())
def test_a_damaged_byte_is_never_heard_as_something(said: m.Message, data: st.DataObject) -> None:
    raw = bytearray(wire(said))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RemoteError):
        heard(Decoder(), bytes(raw))


@given(spoken)
def test_the_size_is_what_the_peer_counts(said: m.Message) -> None:
    parts = m.encode(said)
    (found,) = Decoder().feed(b"".join(parts))
    assert found.size == m.size(parts)


@st.composite
def small_extents(draw: st.DrawFn) -> tuple[Extent, ...]:
    """Ranges that fit into a test's memory, some beyond 4 GiB."""
    found, at = [], draw(st.sampled_from([0, 2**33]))
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3000)), max_size=4)):
        found.append(Extent(at + gap, length))
        at += gap + length
    return tuple(found)


@given(facts, st.lists(small_extents(), max_size=4), st.integers(1, 10))
def test_an_epoch_is_put_together_as_it_was(what: Facts, ranges: list[tuple[Extent, ...]], cut: int) -> None:
    plain = Attributes(0o644, 0, 0, 0, 0)
    small = [InodeFact(FileId(0, 0, ino, 0), Kind.FILE, plain, 0, data=data) for ino, data in enumerate(ranges)]
    epoch = Facts(what.epoch, what.slots, tuple(small), what.dead)
    payload = tuple(
        (index, extent.offset, random.Random(extent.offset).randbytes(extent.length))
        for index, fact in enumerate(small)
        for extent in fact.data
    )
    assembler, decoder = EpochAssembler(), Decoder()
    found: list[Epoch | None] = []
    stream = wire(*messages(epoch, payload))
    step = max(1, len(stream) // cut)
    for at in range(0, len(stream), step):
        found += [assembler.add(one) for one in heard(decoder, stream[at : at + step])]
    assert found[-1] == Epoch(epoch, payload)
    assert not any(found[:-1])
    assert assembler.idle


# Noise: only RemoteError may come of it.


def survives(data: bytes) -> None:
    with contextlib.suppress(RemoteError):
        heard(Decoder(), data)


@given(st.binary(max_size=300))
def test_garbage_raises_only_remote_errors(data: bytes) -> None:
    survives(data)


def framed(kind: Type, number: int, payload: bytes) -> bytes:
    return frame.header(kind, number, [payload]) + payload


@given(st.sampled_from(Type), u64, st.binary(max_size=200))
@settings(max_examples=300)
def test_garbage_in_a_correct_frame_raises_only_remote_errors(kind: Type, number: int, payload: bytes) -> None:
    if len(payload) <= frame.LIMITS[kind]:
        survives(framed(kind, number, payload))


values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["0.0.1.1", "", "/", "..", "f", "l", "d", "AA==", "A", "\0", "é", "€", "0.0.0", "-1.0.0.0"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("siaxknlrmugtzwpceodh"), inner),
    max_leaves=12,
)


@given(st.sampled_from([Type.HELLO, Type.WELCOME, Type.REFUSE, Type.FACTS, Type.APPLIED, Type.CHECK, Type.BYE]), values)
@settings(max_examples=500)
def test_any_json_in_a_correct_frame_raises_only_remote_errors(kind: Type, value: Any) -> None:
    survives(framed(kind, 1, orjson.dumps(value)))


def places(tree: Any) -> list[tuple[Any, Any]]:
    """All (container, key) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found.append((tree, key))
        found += places(value)
    return found


@given(facts, values, st.data())
@settings(max_examples=300)
def test_facts_with_one_value_exchanged_are_correct_facts_or_a_remote_error(
    what: Facts, value: Any, data: st.DataObject
) -> None:
    tree = orjson.loads(encode_facts(what))
    choices = places(tree)
    if choices:
        container, key = choices[data.draw(st.integers(0, len(choices) - 1))]
        container[key] = value
    try:
        found = decode_facts(what.epoch, orjson.dumps(tree))
    except RemoteError:
        return
    except orjson.JSONEncodeError:
        return  # text with a lone surrogate is no JSON
    # Whatever is let through is itself correct: it survives being sent on.
    assert decode_facts(what.epoch, encode_facts(found)) == found


@given(values)
def test_any_json_as_an_answer_raises_only_remote_errors(value: Any) -> None:
    with contextlib.suppress(RemoteError):
        decode_answer(1, orjson.dumps(value))


@given(st.lists(spoken, max_size=5), st.binary(min_size=1, max_size=8), st.data())
def test_noise_between_messages_raises_only_remote_errors(
    said: list[m.Message], noise: bytes, data: st.DataObject
) -> None:
    raw = wire(*said)
    at = data.draw(st.integers(0, len(raw)))
    survives(raw[:at] + noise + raw[at:])


def test_frame_equality_is_of_content() -> None:
    assert Frame(Type.DATA, 1, b"ab") == Frame(Type.DATA, 1, memoryview(b"ab"))

"""Facts on the wire: compact, exact, and nothing a peer makes up gets through."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from replicator.errors import RemoteError
from replicator.link import message as m
from replicator.link.epoch import messages
from replicator.link.facts import decode_answer, decode_facts, encode_answer, encode_facts
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

ID = FileId(0, 0, 0xABCDEF, 0x12345678)
HERE = ID.text()
FILE = InodeFact(ID, Kind.FILE, Attributes(0o644, 1000, 1000, 1_700_000_000_123_456_789, 1_700_000_000_123_456_789), 9)


def inode(**changes: Any) -> bytes:
    """A correct fact with some keys exchanged (None: removed)."""
    tree = orjson.loads(encode_facts(Facts(1, inodes=(FILE,))))
    for key, value in changes.items():
        tree["i"][0][key] = value
        if value is None:
            del tree["i"][0][key]
    return orjson.dumps(tree)


def test_a_small_write_costs_less_than_half_a_kilobyte_besides_its_bytes() -> None:
    attributes = Attributes(0o755, 2**31, 2**31, 2**61, 2**61, xattrs={b"security.selinux": b"x" * 40})
    fact = InodeFact(FileId(0, 2**20, 2**40, 2**32 - 1), Kind.FILE, attributes, 2**30, data=(Extent(2**29, 4096),))
    said = messages(Facts(2**40, inodes=(fact,)), [(0, 2**29, bytes(4096))])
    assert sum(m.size(m.encode(one)) for one in said) < 4096 + 512 - 66  # 66: headers of a TCP segment on Ethernet


@pytest.mark.parametrize(
    "name",
    [b"\xff\xfe", b"new\nline", b"n" * 255, "naïve €".encode(), b"...", b" ", b'"\\', b"\x7f\x01"],
)
def test_names_are_bytes(name: bytes) -> None:
    facts = Facts(1, slots=(SlotFact(Slot(ID, name), ID), SlotFact(Slot(ID, name), None)))
    assert decode_facts(1, encode_facts(facts)) == facts
    answer = Answer(1, looks=(Slot(ID, name),))
    assert decode_answer(1, encode_answer(answer)) == answer


@pytest.mark.parametrize("time", [-1, 0, -(10**9) * 2**40 + 7, 32_503_680_000 * 10**9 + 999_999_999, 2**63 * 10**9 - 1])
def test_times_of_any_year_arrive_to_the_nanosecond(time: int) -> None:
    fact = InodeFact(ID, Kind.DIRECTORY, Attributes(0o755, 0, 0, time, -time), 0)
    assert decode_facts(1, encode_facts(Facts(1, inodes=(fact,)))).inodes == (fact,)


def test_every_field_arrives() -> None:
    fact = InodeFact(
        id=ID,
        kind=Kind.FILE,
        attributes=Attributes(0o7777, 1, 2, 3, 4, 5, b"", {b"user.\xff": bytes(range(256)), b"user.e": b""}),
        size=END_OF_FILE,
        whole=True,
        partial=True,
        settled=False,
        lowest=0,
        data=(Extent(0, 1), Extent(1, 1), Extent(END_OF_FILE - 1, 1)),
        holes=(Extent(5, 6),),
    )
    link = InodeFact(ID, Kind.SYMLINK, Attributes(0o777, 0, 0, 0, 0, target=b"../\xe9\n" * 100), 0, check=True)
    facts = Facts(7, (SlotFact(Slot(ID, b"x"), None),), (fact, link), (ID, FileId(1, 2, 3, 4)))
    assert decode_facts(7, encode_facts(facts)) == facts


def test_a_reason_may_be_any_text_and_arrives_printable() -> None:
    answer = Answer(1, refusals=(Refusal(ID, "no space for b'\udcff'\n\x1b[2J" + "x" * 9000),))
    (refusal,) = decode_answer(1, encode_answer(answer)).refusals
    assert refusal.reason.isprintable()
    assert refusal.reason.startswith("no space for")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/", "a\0", "n" * 256, "€", 7, None, ["a"]], ids=lambda name: repr(name)[:12]
)
def test_names_that_lead_elsewhere_are_refused(name: Any) -> None:
    with pytest.raises(RemoteError):
        decode_facts(1, orjson.dumps({"s": [[HERE, name, None]]}))
    with pytest.raises(RemoteError):
        decode_answer(1, orjson.dumps({"l": [[HERE, name]]}))


@pytest.mark.parametrize(
    "text",
    [
        "", "0.0.1", "0.0.1.1.1", "0.0.1.-1", "0.0.1.+1", "0.0.0x1.1", "0.0.1_0.1", "0.0. 1.1", "0.0.1.G", "0.0.1.A",
        "0.0.01.1", "0.0.8000000000000000.1", "0.0.11111111111111111.1", "0..1.1", 5, None, [0, 0, 1, 1], "0.0.١.1",
    ],
    ids=repr,
)  # fmt: skip
def test_ids_in_another_form_are_refused(text: Any) -> None:
    with pytest.raises(RemoteError):
        decode_facts(1, orjson.dumps({"x": [text]}))


BAD = {
    "no kind": {"k": None},
    "unknown kind": {"k": "x"},
    "kind is a list": {"k": ["f"]},
    "kind is an object": {"k": {}},
    "mode with type bits": {"m": 0o100644},
    "negative mode": {"m": -1},
    "mode is a boolean": {"m": True},
    "mode is a float": {"m": 1.0},
    "uid -1": {"u": 2**32 - 1},
    "negative gid": {"g": -1},
    "no gid": {"g": None},
    "one time": {"t": [1, 2]},
    "a whole second of nanoseconds": {"t": [0, 10**9, 0, 0]},
    "a time beyond 64 bits": {"t": [2**63, 0, 0, 0]},
    "size beyond the largest offset": {"z": 2**63},
    "negative size": {"z": -1},
    "size is text": {"z": "9"},
    "lowest is null": {"o": []},
    "flag is a number": {"w": 1},
    "unknown key": {"y": 1},
    "odd ranges": {"d": [0]},
    "empty range": {"d": [0, 0]},
    "descending ranges": {"d": [10, 5, 0, 5]},
    "overlapping ranges": {"d": [0, 5, 4, 5]},
    "negative offset": {"d": [-1, 5]},
    "range beyond the largest offset": {"d": [2**63 - 2, 2]},
    "range wraps": {"h": [5, 2**64 - 1]},
    "ranges are pairs": {"d": [[0, 5]]},
    "check with data": {"c": True, "d": [0, 5]},
    "directory with data": {"k": "d", "z": None, "d": [0, 5]},
    "directory with a size": {"k": "d"},
    "file with a target": {"l": "x"},
    "symlink without a target": {"k": "l", "z": None},
    "target with NUL": {"k": "l", "z": None, "l": "a\0b"},
    "target too long": {"k": "l", "z": None, "l": "a" * 4096},
    "xattrs are a list": {"a": []},
    "xattr not base64": {"a": {"user.x": "%%%"}},
    "xattr badly padded": {"a": {"user.x": "AA"}},
    "xattr is null": {"a": {"user.x": None}},
    "xattr too long": {"a": {"user.x": "A" * 100_000}},
    "xattr without a name": {"a": {"": ""}},
    "xattr name with NUL": {"a": {"user.\0": ""}},
    "xattr name too long": {"a": {"u" * 256: ""}},
}


def test_the_template_of_the_bad_facts_is_good() -> None:
    assert decode_facts(1, inode()).inodes == (FILE,)
    assert decode_facts(1, inode(d=[0, 5, 5, 4], o=0, c=False)).inodes[0].data == (Extent(0, 5), Extent(5, 4))


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
def test_bad_facts_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteError):
        decode_facts(1, inode(**changes))


@pytest.mark.parametrize(
    "payload",
    [b"", b"nul", b"[]", b"1", b'{"s":{}}', b'{"i":[[]]}', b'{"q":[]}', b'{"s":[["0.0.1.1"]]}', b"[" * 99_999],
)
def test_payloads_of_another_shape_are_refused(payload: bytes) -> None:
    with pytest.raises(RemoteError):
        decode_facts(1, payload)
    with pytest.raises(RemoteError):
        decode_answer(1, payload)


def test_a_remote_error_is_short_whatever_it_quotes() -> None:
    with pytest.raises(RemoteError) as caught:
        decode_facts(1, orjson.dumps({"x": ["z" * 100_000]}))
    assert len(str(caught.value)) < 200

"""Facts and answers as JSON payloads, and back.

Takes and gives values of model.py. What a peer sent is checked to the last field: names cannot leave their directory,
ranges ascend, numbers fit; anything else is a RemoteError. It does not check that the facts make sense together:
the planner does. Fields that have their usual value are left out, as a fact is sent for every small write.

Times travel as seconds and nanoseconds, since some filesystems keep years that nanoseconds in 64 bits cannot.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import Any

import orjson

from replicator.link import strict
from replicator.link.frame import Buffer
from replicator.model import Answer, Attributes, Facts, FileId, InodeFact, Kind, Refusal, Slot, SlotFact

TARGET_MAX = 4095
XATTR_NAME_MAX = 255
XATTR_VALUE_MAX = 64 * 1024
MAX_ID = 2**32 - 2  # 2^32-1 means "leave as it is" to chown
SECOND = 10**9
_FAR = 2**63 - 1

_FACTS = frozenset({"s", "i", "x"})
_INODE = frozenset({"i", "k", "m", "u", "g", "t", "r", "l", "a", "z", "w", "p", "c", "e", "n", "o", "d", "h"})
_ANSWER = frozenset({"n", "l", "r", "d"})
_KINDS = {kind.value: kind for kind in Kind}


def encode_facts(facts: Facts) -> bytes:
    """The payload; the epoch is the frame's number."""
    tree: dict[str, Any] = {}
    if facts.slots:
        tree["s"] = [
            [fact.slot.parent.text(), fact.slot.name.decode("latin-1"), None if fact.id is None else fact.id.text()]
            for fact in facts.slots
        ]
    if facts.inodes:
        tree["i"] = [_inode(fact) for fact in facts.inodes]
    if facts.dead:
        tree["x"] = [dead.text() for dead in facts.dead]
    return orjson.dumps(tree)


def decode_facts(epoch: int, payload: Buffer) -> Facts:
    """The facts of a payload. RemoteError if it is not one."""
    tree = strict.whole_object(strict.parse(payload), _FACTS, "facts")
    ids: dict[str, FileId] = {}  # a new file's is there twice, its directory's as often as it has new names
    return Facts(
        epoch=epoch,
        slots=tuple([_read_slot(value, ids) for value in strict.array(tree.get("s", []), "slots")]),
        inodes=tuple([_read_inode(value, ids) for value in strict.array(tree.get("i", []), "inodes")]),
        dead=tuple(map(strict.file_id, strict.array(tree.get("x", []), "dead ids"))),
    )


def encode_answer(answer: Answer) -> bytes:
    """The payload; the epoch is the frame's number."""
    tree: dict[str, Any] = {}
    if answer.needs:
        tree["n"] = [need.text() for need in answer.needs]
    if answer.looks:
        tree["l"] = [[look.parent.text(), look.name.decode("latin-1")] for look in answer.looks]
    if answer.refusals:
        tree["r"] = _refusals(answer.refusals)
    if answer.doubts:
        tree["d"] = [doubt.text() for doubt in answer.doubts]
    return orjson.dumps(tree)


def decode_answer(epoch: int, payload: Buffer) -> Answer:
    """The answer in a payload. RemoteError if it is not one."""
    tree = strict.whole_object(strict.parse(payload), _ANSWER, "an answer")
    looks = (_fields(item, 2, "a slot") for item in strict.array(tree.get("l", []), "slots"))
    return Answer(
        epoch=epoch,
        needs=tuple(map(strict.file_id, strict.array(tree.get("n", []), "ids"))),
        looks=tuple(strict.slot(parent, name) for parent, name in looks),
        refusals=_read_refusals(tree.get("r", [])),
        doubts=tuple(map(strict.file_id, strict.array(tree.get("d", []), "ids"))),
    )


def encode_refusals(refusals: Sequence[Refusal]) -> bytes:
    """The payload that has nothing but them."""
    return orjson.dumps(_refusals(refusals))


def decode_refusals(payload: Buffer) -> tuple[Refusal, ...]:
    """The refusals in such a payload. RemoteError if it is not one."""
    return _read_refusals(strict.parse(payload))


def _refusals(refusals: Sequence[Refusal]) -> list[list[str]]:
    return [[refusal.id.text(), strict.sentence(refusal.reason)] for refusal in refusals]


def _read_refusals(value: Any) -> tuple[Refusal, ...]:
    pairs = (_fields(item, 2, "a refusal") for item in strict.array(value, "refusals"))
    return tuple(Refusal(strict.file_id(of), strict.reason(reason)) for of, reason in pairs)


def _inode(fact: InodeFact) -> dict[str, Any]:
    held = fact.attributes
    tree: dict[str, Any] = {
        "i": fact.id.text(),
        "k": fact.kind.value,
        "m": held.mode,
        "u": held.uid,
        "g": held.gid,
        "t": [*divmod(held.mtime_ns, SECOND), *divmod(held.ctime_ns, SECOND)],
    }
    if held.rdev:
        tree["r"] = held.rdev
    if held.target:
        tree["l"] = held.target.decode("latin-1")
    if held.xattrs:
        tree["a"] = {
            key.decode("latin-1"): binascii.b2a_base64(value, newline=False).decode("ascii")
            for key, value in held.xattrs.items()
        }
    if fact.size:
        tree["z"] = fact.size
    if fact.whole:
        tree["w"] = True
    if fact.partial:
        tree["p"] = True
    if fact.check:
        tree["c"] = True
    if fact.deep:
        tree["e"] = True
    if not fact.settled:
        tree["n"] = False
    if fact.lowest is not None:
        tree["o"] = fact.lowest
    if fact.data:
        tree["d"] = [number for extent in fact.data for number in extent]
    if fact.holes:
        tree["h"] = [number for extent in fact.holes for number in extent]
    return tree


def _read_id(value: Any, ids: dict[str, FileId]) -> FileId:
    found = ids.get(value) if type(value) is str else None
    if found is None:
        found = ids[value] = strict.file_id(value)
    return found


def _read_slot(value: Any, ids: dict[str, FileId]) -> SlotFact:
    parent, name, target = _fields(value, 3, "a slot")
    slot = Slot(_read_id(parent, ids), strict.name(name))
    return SlotFact(slot, None if target is None else _read_id(target, ids))


def _read_inode(value: Any, ids: dict[str, FileId]) -> InodeFact:
    tree = strict.whole_object(value, _INODE, "an inode's fact")
    kind = _KINDS.get(strict.string(tree.get("k"), "a kind of file", 1))
    if kind is None:
        strict.bad("a kind of file", tree.get("k"))
    fact = InodeFact(
        id=_read_id(tree.get("i"), ids),
        kind=kind,
        attributes=_read_attributes(tree),
        size=strict.number(tree.get("z", 0), "a size"),
        whole=strict.flag(tree.get("w", False), "a flag"),
        partial=strict.flag(tree.get("p", False), "a flag"),
        check=strict.flag(tree.get("c", False), "a flag"),
        deep=strict.flag(tree.get("e", False), "a flag"),
        settled=strict.flag(tree.get("n", True), "a flag"),
        lowest=strict.number(tree["o"], "a size") if "o" in tree else None,
        data=strict.extents(tree["d"]) if "d" in tree else (),
        holes=strict.extents(tree["h"]) if "h" in tree else (),
    )
    if kind is not Kind.FILE and (fact.size or fact.data or fact.holes or fact.partial or fact.lowest is not None):
        strict.bad("a fact about something without content", value)
    if fact.check and (fact.data or fact.holes or fact.partial):
        strict.bad("a check, which carries no content", value)
    if fact.deep and not (fact.check and kind is Kind.FILE):
        strict.bad("a doubt, which is about the content of a file that is checked", value)
    if (kind is Kind.SYMLINK) != bool(fact.attributes.target):
        strict.bad("a target for each symbolic link and nothing else", value)
    return fact


def _read_attributes(tree: dict[str, Any]) -> Attributes:
    times = _fields(tree.get("t"), 4, "two times")
    stamps = [strict.number(times[i], "a time", low=-_FAR - 1, high=_FAR) * SECOND for i in (0, 2)]
    parts = [strict.number(times[i], "nanoseconds", high=SECOND - 1) for i in (1, 3)]
    xattrs = tree.get("a", {})
    if not isinstance(xattrs, dict):
        strict.bad("extended attributes", xattrs)
    return Attributes(
        mode=strict.number(tree.get("m"), "a mode", high=0o7777),
        uid=strict.number(tree.get("u"), "a user's number", high=MAX_ID),
        gid=strict.number(tree.get("g"), "a group's number", high=MAX_ID),
        mtime_ns=stamps[0] + parts[0],
        ctime_ns=stamps[1] + parts[1],
        rdev=strict.number(tree.get("r", 0), "a device number"),
        target=strict.raw(tree["l"], "a link's target", TARGET_MAX) if "l" in tree else b"",
        xattrs={
            strict.raw(key, "an attribute's name", XATTR_NAME_MAX): strict.blob(
                value, "an attribute's value", XATTR_VALUE_MAX
            )
            for key, value in xattrs.items()
        },
    )


def _fields(value: Any, count: int, what: str) -> list[Any]:
    fields = strict.array(value, what)
    if len(fields) != count:
        strict.bad(what, value)
    return fields

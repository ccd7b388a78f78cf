"""Messages: what the two ends say, as values; frames to and from them. No I/O.

The sender says Hello, Facts Data* End (an epoch) and Bye; the receiver Welcome or Refuse, Applied, Durable and Bye;
both say Ping, Pong, Check and Checked. Who may say what when is session.py's to know.

Everything that a peer can send decodes to one of these values or raises RemoteError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from replicator.link import facts as facts_codec
from replicator.link import frame, strict
from replicator.link.frame import Buffer, Frame, Type
from replicator.model import END_OF_FILE, Answer, Facts, FileId, Refusal

PROTOCOL = 3
"""The newest protocol version this side speaks (what the frames mean)."""

OLDEST_PROTOCOL = 3
"""The oldest one. The first had no comparison by blocks, the second a message for each range; none was released."""

_DATA = struct.Struct("!IQ")
_END = struct.Struct("!IQ")
_U64 = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Hello:
    """The sender's first message: who it is, and what it believes about the replica."""

    source: str
    """The source's uuid, made when its state directory was."""
    root: FileId
    """The directory that is replicated."""
    instance: int
    """A random number below 2^64, drawn when this sender started; epochs are numbered within it."""
    durable: int = 0
    """The last epoch of this instance that the sender knows to be durable; 0 is none."""
    replica: str | None = None
    """The uuid of the replica it has spoken to before; None if it has not."""
    fstype: str = ""
    hostname: str = ""
    boot_id: str = ""
    ancestors: tuple[tuple[int, int], ...] = ()
    """(st_dev, st_ino) of the source's root and all directories above it, to notice nesting on one host."""
    software: str = ""
    oldest: int = OLDEST_PROTOCOL
    newest: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Welcome:
    """The receiver's yes."""

    replica: str
    """The replica's uuid."""
    empty: bool
    """It has nothing yet: everything must be sent."""
    instance: int | None = None
    """The sender's instance that the numbers below belong to; None if it has met none."""
    durable: int = 0
    """The last durable epoch of that instance."""
    open: int = 0
    """The epoch that was begun and not finished; 0 is none."""
    window_bytes: int = 32 * 2**20
    """An epoch may be begun while fewer bytes than this (as they are on the wire) are sent and not applied."""
    window_epochs: int = 64
    """And fewer epochs than this."""
    software: str = ""
    version: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Refuse:
    """The receiver's no. `permanent`: trying again will not mend it."""

    code: str
    """For programs: busy, foreign-root, other-source, nested, version, ..."""
    reason: str
    """For people: one sentence."""
    permanent: bool


@dataclass(frozen=True, slots=True)
class FactsFrame:
    """An epoch begins; the bytes of its `data` ranges follow as Data, then comes End."""

    facts: Facts


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of the epoch's inode number `index` (its place in Facts.inodes) from `offset` on, going on with what the
    facts declare behind that; never empty."""

    epoch: int
    index: int
    offset: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class End:
    """The epoch is complete: it had `frames` Data, which held `length` bytes."""

    epoch: int
    frames: int
    length: int


@dataclass(frozen=True, slots=True)
class Applied:
    """The epoch is visible on the replica, except for what the answer names."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Durable:
    """All epochs up to this one survive a power cut, but for the inodes in `lost`, which must come once more."""

    epoch: int
    lost: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? `token` comes back in a Pong."""

    token: int


@dataclass(frozen=True, slots=True)
class Pong:
    """I am."""

    token: int


@dataclass(frozen=True, slots=True)
class Check:
    """A request, by either side, between epochs. The body is any JSON object."""

    request: int
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checked:
    """The answer to the Check of the same number."""

    request: int
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bye:
    """This side says nothing more and closes the connection, for that reason."""

    reason: str


Message = Hello | Welcome | Refuse | FactsFrame | Data | End | Applied | Durable | Ping | Pong | Check | Checked | Bye


def encode(message: Message) -> list[Buffer]:
    """The message as parts to be sent one after the other. Bytes of Data are not copied: the last part is `data`
    itself, which must not change until it is sent.

    ValueError if a frame would exceed its limit (frame.LIMITS).
    """
    kind, number, payload = _pack(message)
    head = frame.header(kind, number, payload)
    if isinstance(message, Data):
        return [head + bytes(payload[0]), payload[1]]
    return [head + bytes(payload[0])] if payload else [head]


def size(parts: list[Buffer]) -> int:
    """Bytes on the wire of an encoded message."""
    return sum(map(len, parts))


def _pack(message: Message) -> tuple[Type, int, list[Buffer]]:
    match message:
        case Data(epoch, index, offset, data):
            return Type.DATA, epoch, [_DATA.pack(index, offset), data]
        case FactsFrame(facts):
            return Type.FACTS, facts.epoch, [facts_codec.encode_facts(facts)]
        case End(epoch, frames, length):
            return Type.END, epoch, [_END.pack(frames, length)]
        case Applied(answer):
            return Type.APPLIED, answer.epoch, [facts_codec.encode_answer(answer)]
        case Durable(epoch, lost):
            return Type.DURABLE, epoch, [facts_codec.encode_refusals(lost)] if lost else []
        case Ping(token):
            return Type.PING, token, []
        case Pong(token):
            return Type.PONG, token, []
        case Check(request, body):
            return Type.CHECK, request, [orjson.dumps(body)]
        case Checked(request, body):
            return Type.CHECKED, request, [orjson.dumps(body)]
        case Bye(reason):
            return Type.BYE, 0, [orjson.dumps({"reason": strict.sentence(reason)})]
        case Refuse(code, reason, permanent):
            return (
                Type.REFUSE,
                0,
                [orjson.dumps({"code": code, "reason": strict.sentence(reason), "permanent": permanent})],
            )
        case Hello():
            tree: dict[str, Any] = {key: getattr(message, key) for key in _HELLO}
            tree["root"] = message.root.text()
            tree["hostname"] = strict.sentence(message.hostname)[:256]
            return Type.HELLO, 0, [orjson.dumps(tree)]
        case Welcome():
            return Type.WELCOME, 0, [orjson.dumps({key: getattr(message, key) for key in _WELCOME})]


def decode(received: Frame) -> Message:
    """The message in a frame. RemoteError if its payload is not what its type has."""
    return _DECODERS[received.type](received.number, received.payload)


def _data(epoch: int, payload: Buffer) -> Data:
    if len(payload) <= _DATA.size:
        strict.bad("a DATA frame with bytes in it", bytes(payload))
    index, offset = _DATA.unpack_from(payload)
    length = len(payload) - _DATA.size
    strict.number(offset, "an offset", high=END_OF_FILE - length)
    return Data(_epoch(epoch), index, offset, memoryview(payload)[_DATA.size :])


def _end(epoch: int, payload: Buffer) -> End:
    if len(payload) != _END.size:
        strict.bad("the end of an epoch", bytes(payload))
    return End(_epoch(epoch), *_END.unpack(payload))


def _hello(number: int, payload: Buffer) -> Hello:
    tree = strict.parse(payload)
    if not isinstance(tree, dict):
        strict.bad("a greeting", tree)
    # A later version may know other keys; it must still be told in a sentence that it is too new.
    oldest = strict.number(tree.get("oldest"), "a protocol version", low=1)
    newest = strict.number(tree.get("newest"), "a protocol version", low=oldest)
    if oldest > PROTOCOL or newest < OLDEST_PROTOCOL:
        return Hello(source="", root=FileId(0, 0, 0, 0), instance=0, oldest=oldest, newest=newest)
    strict.whole_object(tree, _HELLO if newest == PROTOCOL else frozenset(tree), "a greeting")
    ancestors = strict.array(tree.get("ancestors"), "directories")
    pairs = [strict.array(pair, "a directory") for pair in ancestors]
    if any(len(pair) != 2 for pair in pairs):
        strict.bad("directories", ancestors)
    replica = tree.get("replica")
    return Hello(
        source=strict.string(tree.get("source"), "a uuid", 64),
        root=strict.file_id(tree.get("root")),
        instance=strict.number(tree.get("instance"), "an instance", high=_U64),
        durable=strict.number(tree.get("durable"), "an epoch"),
        replica=None if replica is None else strict.string(replica, "a uuid", 64),
        fstype=strict.string(tree.get("fstype"), "a file system", 64),
        hostname=strict.string(tree.get("hostname"), "a host", 256),
        boot_id=strict.string(tree.get("boot_id"), "a boot id", 64),
        ancestors=tuple(
            (strict.number(dev, "a device", high=_U64), strict.number(ino, "an inode", high=_U64)) for dev, ino in pairs
        ),
        software=strict.string(tree.get("software"), "a version", 64),
        oldest=oldest,
        newest=newest,
    )


def _welcome(number: int, payload: Buffer) -> Welcome:
    tree = strict.whole_object(strict.parse(payload), _WELCOME, "a welcome")
    instance = tree.get("instance")
    return Welcome(
        replica=strict.string(tree.get("replica"), "a uuid", 64),
        empty=strict.flag(tree.get("empty"), "a flag"),
        instance=None if instance is None else strict.number(instance, "an instance", high=_U64),
        durable=strict.number(tree.get("durable"), "an epoch"),
        open=strict.number(tree.get("open"), "an epoch"),
        window_bytes=strict.number(tree.get("window_bytes"), "a window", low=1),
        window_epochs=strict.number(tree.get("window_epochs"), "a window", low=1),
        software=strict.string(tree.get("software"), "a version", 64),
        version=strict.number(tree.get("version"), "a protocol version", low=1),
    )


def _refuse(number: int, payload: Buffer) -> Refuse:
    tree = strict.whole_object(strict.parse(payload), frozenset({"code", "reason", "permanent"}), "a refusal")
    return Refuse(
        code=strict.string(tree.get("code"), "a code", 64),
        reason=strict.reason(tree.get("reason")),
        permanent=strict.flag(tree.get("permanent"), "a flag"),
    )


def _body(payload: Buffer) -> dict[str, Any]:
    body = strict.parse(payload)
    if not isinstance(body, dict):
        strict.bad("a JSON object", body)
    return body


def _bye(number: int, payload: Buffer) -> Bye:
    tree = strict.whole_object(strict.parse(payload), frozenset({"reason"}), "a farewell")
    return Bye(strict.reason(tree.get("reason")))


def _epoch(value: int) -> int:
    return strict.number(value, "an epoch", low=1)


_HELLO = frozenset(Hello.__slots__)
_WELCOME = frozenset(Welcome.__slots__)

_DECODERS: dict[Type, Callable[[int, Buffer], Message]] = {
    Type.HELLO: _hello,
    Type.WELCOME: _welcome,
    Type.REFUSE: _refuse,
    Type.FACTS: lambda number, payload: FactsFrame(facts_codec.decode_facts(_epoch(number), payload)),
    Type.DATA: _data,
    Type.END: _end,
    Type.APPLIED: lambda number, payload: Applied(facts_codec.decode_answer(_epoch(number), payload)),
    Type.DURABLE: lambda number, payload: Durable(
        _epoch(number), facts_codec.decode_refusals(payload) if len(payload) else ()
    ),
    Type.PING: lambda number, payload: Ping(number),
    Type.PONG: lambda number, payload: Pong(number),
    Type.CHECK: lambda number, payload: Check(number, _body(payload)),
    Type.CHECKED: lambda number, payload: Checked(number, _body(payload)),
    Type.BYE: _bye,
}

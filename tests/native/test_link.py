"""The link over real sockets, with and without TLS, driven by a selector as the loops do."""

from __future__ import annotations

import random
import selectors
import socket
import ssl
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from replicator.errors import EnvironmentFault, RefusedError, RemoteError, RsyncfsError
from replicator.link import message as m
from replicator.link.address import Address, resolve
from replicator.link.connection import Connection, Heard
from replicator.link.epoch import Epoch
from replicator.link.session import Party, ProtocolMisuse
from replicator.link.sockets import accept, connect, listen
from replicator.link.tls import TlsFiles, client_context, server_context
from replicator.link.transport import LinkLost, Transport
from replicator.model import Answer, Attributes, Extent, Facts, FileId, InodeFact, Kind
from tests.support.certificates import authority, issue
from tests.support.deadline import eventually

MIB = 2**20
HELLO = m.Hello("source", FileId(0, 0, 2, 0), 1)
PLAIN = Attributes(0o644, 0, 0, 0, 0)


class Contexts(NamedTuple):
    server: ssl.SSLContext | None
    client: ssl.SSLContext | None


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    """ours and theirs are signed by our authority, strange by another; confused trusts the wrong one."""
    directory = tmp_path_factory.mktemp("tls")
    ours, other = authority(directory), authority(directory, "other")
    made = {name: issue(directory, name, ours) for name in ("server", "client")}
    strange = issue(directory, "strange", other)
    files = {name: TlsFiles(*map(str, tls)) for name, tls in made.items()}
    files["strange"] = TlsFiles(str(strange.certificate), str(strange.key), str(ours))
    files["confused"] = TlsFiles(str(made["client"].certificate), str(made["client"].key), str(other))
    return files


@pytest.fixture(params=["plain", "tls"])
def contexts(request: pytest.FixtureRequest) -> Contexts:
    if request.param == "plain":
        return Contexts(None, None)
    files: dict[str, TlsFiles] = request.getfixturevalue("certificates")
    return Contexts(server_context(files["server"]), client_context(files["client"]))


class Ends:
    """A sender and a receiver, connected; what each has heard, and the error that ended it."""

    def __init__(self, contexts: Contexts, host: str = "127.0.0.1", buffers: int = 0) -> None:
        self.listener = listen(Address(host, 0))
        if buffers:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        self.address = Address(host, self.listener.getsockname()[1])
        self.sender = Connection(connect(resolve(self.address)[0], contexts.client), Party.SENDER)
        transport = eventually(lambda: accept(self.listener, contexts.server))
        assert transport is not None
        if buffers:
            self.sender.transport._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        self.receiver = Connection(transport, Party.RECEIVER)
        self.heard: dict[Connection, list[Heard]] = {self.sender: [], self.receiver: []}
        self.errors: dict[Connection, RsyncfsError] = {}

    def turn(self, *, deaf: tuple[Connection, ...] = (), timeout: float = 0.02) -> None:
        """One turn of a loop that serves both ends by what they say they wait for."""
        with selectors.DefaultSelector() as selector:
            for end in (self.sender, self.receiver):
                if end.fileno() >= 0 and end not in self.errors and end not in deaf:
                    selector.register(end, end.interest())
            for key, mask in selector.select(timeout):
                end = next(one for one in (self.sender, self.receiver) if one is key.fileobj)
                try:
                    if mask & selectors.EVENT_READ:
                        self.heard[end] += end.hear()
                    if mask & selectors.EVENT_WRITE:
                        end.flush()
                except RsyncfsError as error:
                    self.errors[end] = error
                    end.close()

    def until(self, done: Callable[[], object], timeout: float = 20.0, **how: tuple[Connection, ...]) -> None:
        def step() -> object:
            self.turn(**how)  # type: ignore[arg-type]
            return done()

        eventually(step, timeout, what=f"heard {self.heard}, errors {self.errors}"[:2000], every=0)

    def greet(self, window_bytes: int = 32 * MIB, window_epochs: int = 64) -> None:
        welcome = m.Welcome("replica", True, window_bytes=window_bytes, window_epochs=window_epochs)
        self.sender.say(HELLO)
        self.until(lambda: self.heard[self.receiver])
        self.receiver.say(welcome)
        self.until(lambda: self.heard[self.sender])
        assert self.heard == {self.sender: [welcome], self.receiver: [HELLO]}
        self.heard = {self.sender: [], self.receiver: []}

    def error(self, end: Connection) -> RsyncfsError:
        self.until(lambda: end in self.errors)
        return self.errors[end]

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()
        self.listener.close()


@pytest.fixture
def ends(contexts: Contexts) -> Iterator[Ends]:
    made = Ends(contexts)
    yield made
    made.close()


def epoch(number: int, *sizes: int) -> tuple[Facts, list[tuple[int, int, bytes]]]:
    """An epoch of one file for each size, with content made from the numbers."""
    facts = Facts(
        number,
        inodes=tuple(
            InodeFact(FileId(0, 0, index, number), Kind.FILE, PLAIN, size, data=(Extent(7, size),))
            for index, size in enumerate(sizes)
        ),
    )
    return facts, [(index, 7, random.Random(number).randbytes(size)) for index, size in enumerate(sizes)]


def test_epochs_out_answers_back(ends: Ends) -> None:
    ends.greet()
    facts, payload = epoch(1, 1, 4096, 70_000, 100)
    ends.sender.say_epoch(facts, payload)
    ends.until(lambda: ends.heard[ends.receiver])
    assert ends.heard[ends.receiver] == [Epoch(facts, tuple(payload))]
    answers: list[m.Message] = [
        m.Applied(Answer(1, needs=(FileId(0, 0, 1, 1),))),
        m.Durable(1),
        m.Check(1, {"op": "x"}),
    ]
    for answer in answers:
        ends.receiver.say(answer)
    ends.until(lambda: len(ends.heard[ends.sender]) == 3)
    assert ends.heard[ends.sender] == answers
    assert ends.sender.session.durable == 1


def test_the_bytes_counted_are_those_of_the_socket(ends: Ends) -> None:
    ends.greet()
    before = ends.sender.transport.bytes_out
    size = ends.sender.say_epoch(*epoch(1, 100_000, 3))
    ends.until(lambda: ends.heard[ends.receiver])
    sent = ends.sender.transport.bytes_out
    assert ends.receiver.transport.bytes_in == sent
    if ends.sender.transport._tls is None:
        assert sent - before == size
    else:
        assert size < sent - before < size * 1.01 + 200


@pytest.mark.parametrize("buffers", [0, 4096])
def test_a_big_epoch_arrives_through_many_partial_writes(contexts: Contexts, buffers: int) -> None:
    ends = Ends(contexts, buffers=buffers)
    ends.greet()
    size = 48 * MIB if not buffers else 4 * MIB
    facts, payload = epoch(1, 10, size, 20, size // 4)
    ends.sender.say_epoch(facts, payload)
    assert ends.sender.transport.queued > 0
    ends.until(lambda: ends.heard[ends.receiver], 60)
    assert ends.heard[ends.receiver] == [Epoch(facts, tuple(payload))]
    assert ends.sender.transport.queued == 0
    ends.close()


def test_a_thousand_small_epochs_within_the_window(ends: Ends) -> None:
    ends.greet(window_bytes=20_000, window_epochs=8)
    number, most = 0, 0
    while number < 1000 or ends.sender.session.in_flight[0]:
        while number < 1000 and ends.sender.session.window_left() > 0:
            number += 1
            ends.sender.say_epoch(*epoch(number, number % 3000 + 1))
        most = max(most, ends.sender.session.in_flight[0])
        ends.turn()
        for heard in ends.heard[ends.receiver]:
            assert isinstance(heard, Epoch)
            wanted, payload = epoch(heard.facts.epoch, heard.facts.epoch % 3000 + 1)
            assert heard == Epoch(wanted, tuple(payload))
            ends.receiver.say(m.Applied(Answer(heard.facts.epoch)))
        ends.heard[ends.receiver].clear()
        assert not ends.errors
    assert ends.sender.session.applied == 1000
    assert most == 8


def test_a_receiver_that_is_asked_for_too_much_says_so(ends: Ends) -> None:
    ends.greet(window_epochs=1)
    ends.sender.say_epoch(*epoch(1, 1))
    with pytest.raises(ProtocolMisuse):
        ends.sender.say_epoch(*epoch(2, 1))
    # A sender that does not keep to it:
    ends.sender.transport.send([*m.encode(m.FactsFrame(Facts(2))), *m.encode(m.End(2, 0, 0))])
    error = ends.error(ends.receiver)
    assert isinstance(error, RemoteError)
    assert "window" in str(error)
    # What was correct before was heard all the same.
    assert len(ends.heard[ends.receiver]) == 1


def test_a_payload_that_its_facts_do_not_declare_never_leaves(ends: Ends) -> None:
    ends.greet()
    facts, payload = epoch(1, 100)
    with pytest.raises(ProtocolMisuse):
        ends.sender.say_epoch(facts, [(0, 7, payload[0][2][:99])])
    ends.sender.say_epoch(facts, payload)
    ends.until(lambda: ends.heard[ends.receiver])


def test_memory_is_bounded_by_the_window_not_by_what_passes(contexts: Contexts) -> None:
    ends = Ends(contexts)
    ends.greet(window_bytes=8 * MIB)
    block = random.Random(1).randbytes(4 * MIB)
    passed = number = 0
    tracemalloc.start()
    try:
        while passed < 40:
            while ends.sender.session.window_left() > 0:
                number += 1
                facts, _ = epoch(number, 0)
                fact = InodeFact(FileId(0, 0, 1, 1), Kind.FILE, PLAIN, 1, data=(Extent(0, len(block)),))
                ends.sender.say_epoch(Facts(facts.epoch, inodes=(fact,)), [(0, 0, block)])
            ends.turn()
            for heard in ends.heard[ends.receiver]:
                assert isinstance(heard, Epoch)
                assert heard.payload[0][2] == block
                ends.receiver.say(m.Applied(Answer(heard.facts.epoch)))
                passed += 1
            ends.heard[ends.receiver].clear()
            assert not ends.errors
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * MIB
    ends.close()


def test_a_peer_that_asks_and_never_reads_is_dropped(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.link.transport.MAX_QUEUE", 8 * MIB)
    ends.greet()
    body = {"x": "y" * MIB}

    def answer_until_it_is_too_much() -> None:
        for request in range(100):
            ends.sender.say(m.Check(request))
            ends.until(lambda: ends.heard[ends.receiver], deaf=(ends.sender,))
            ends.heard[ends.receiver].clear()
            ends.receiver.say(m.Checked(request, body))

    with pytest.raises(RemoteError, match="does not read"):
        answer_until_it_is_too_much()


@pytest.mark.parametrize("last", [m.Refuse("busy", "another sender is connected", permanent=False), m.Bye("stopping")])
def test_last_words_are_heard_although_the_speaker_closed_at_once(ends: Ends, last: m.Message) -> None:
    if isinstance(last, m.Bye):
        ends.greet()
        ends.sender.say_epoch(*epoch(1, 16 * MIB))  # more than the buffers hold: the other side closes over it
    else:
        ends.sender.say(HELLO)
        ends.until(lambda: ends.heard[ends.receiver])
    ends.receiver.say(last)
    ends.receiver.close()
    assert isinstance(ends.error(ends.sender), LinkLost)
    assert ends.heard[ends.sender] == [last]


def test_last_words_are_heard_by_an_end_that_first_notices_that_it_cannot_send(ends: Ends) -> None:
    ends.greet()
    ends.sender.say_epoch(*epoch(1, 16 * MIB))
    ends.receiver.say(m.Bye("stopping"))
    ends.receiver.close()

    def nothing_left_to_send() -> bool:
        ends.sender.flush()
        return not ends.sender.transport.queued

    eventually(nothing_left_to_send)
    assert eventually(ends.sender.hear) == [m.Bye("stopping")]
    with pytest.raises(LinkLost):
        eventually(ends.sender.hear)


def test_a_connection_that_ends_in_the_middle_of_a_message_says_so(ends: Ends) -> None:
    ends.greet()
    facts, _ = epoch(1, MIB)
    ends.sender.transport.send([m.encode(m.FactsFrame(facts))[0][:50]])
    ends.sender.transport.flush()
    ends.sender.close()
    error = ends.error(ends.receiver)
    assert isinstance(error, LinkLost)
    assert "in the middle of a message" in str(error)


def test_an_abrupt_end_is_a_lost_link(ends: Ends) -> None:
    ends.greet()
    sock = ends.sender.transport._sock
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    assert isinstance(ends.error(ends.receiver), LinkLost)


def test_a_peer_that_breaks_the_rules_is_told_and_left(ends: Ends) -> None:
    ends.greet()
    ends.sender.transport.send(m.encode(m.Durable(1)))
    error = ends.error(ends.receiver)
    assert isinstance(error, RemoteError)
    assert "Durable" in str(error)


def test_damage_on_the_way_is_a_remote_error(ends: Ends) -> None:
    ends.greet()
    data = bytearray(b"".join(m.encode(m.Check(1, {"key": "value"}))))
    data[-3] ^= 1
    ends.sender.transport.send([*m.encode(m.Check(0)), bytes(data)])
    error = ends.error(ends.receiver)
    assert isinstance(error, RemoteError)
    assert "damaged" in str(error)
    assert ends.heard[ends.receiver] == [m.Check(0)]


def test_pings_are_answered_by_the_connection(ends: Ends) -> None:
    ends.greet()
    ends.sender.say(m.Ping(77))
    ends.until(lambda: not ends.sender.session._pings[Party.SENDER])
    assert ends.heard == {ends.sender: [], ends.receiver: []}


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(5000), b"\xff" * 5000, b"rsfs" * 99])
def test_garbage_is_a_remote_error_of_one_sentence(contexts: Contexts, garbage: bytes) -> None:
    listener = listen(Address("127.0.0.1", 0))
    with socket.create_connection(listener.getsockname()) as caller:
        transport = eventually(lambda: accept(listener, contexts.server))
        assert transport is not None
        end = Connection(transport, Party.RECEIVER)
        caller.sendall(garbage)
        with pytest.raises(RemoteError) as caught:
            eventually(end.hear)
        assert "\n" not in str(caught.value)
        end.close()
    listener.close()


def test_localhost_means_loopback_and_ipv6_works(contexts: Contexts) -> None:
    ends = Ends(contexts, host="localhost")
    ends.greet()
    ends.close()


# Connecting.


def test_nobody_listens() -> None:
    listener = listen(Address("127.0.0.1", 0))
    address = Address("127.0.0.1", listener.getsockname()[1])
    listener.close()

    def attempt() -> None:
        end = Connection(connect(resolve(address)[0]), Party.SENDER)
        try:
            end.say(HELLO)
            eventually(end.hear)
        finally:
            end.close()

    with pytest.raises(LinkLost, match="is `rsyncfs receive` running") as caught:
        attempt()
    assert str(address) in str(caught.value)


def test_a_taken_port_is_an_environment_fault() -> None:
    listener = listen(Address("127.0.0.1", 0))
    with pytest.raises(EnvironmentFault, match="another program listens there"):
        listen(Address("127.0.0.1", listener.getsockname()[1]))
    listener.close()


def test_an_address_of_another_host_is_an_environment_fault() -> None:
    with pytest.raises(EnvironmentFault, match="no such address"):
        listen(Address("192.0.2.1", 0))


def test_no_caller_is_none() -> None:
    listener = listen(Address("127.0.0.1", 0))
    assert accept(listener) is None
    listener.close()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_connection_that_is_never_answered_is_given_up() -> None:
    clock = Clock()
    sock = socket.socket()
    end = Connection(Transport(sock, "far:1", clock=clock), Party.SENDER, clock=clock)
    end.transport._connecting = True
    assert end.beat() > 0
    clock.now += 10.1
    with pytest.raises(LinkLost, match="cannot connect to far:1"):
        end.beat()
    end.close()


def test_a_caller_that_never_greets_is_given_up() -> None:
    clock = Clock()
    ours, theirs = socket.create_server(("127.0.0.1", 0)), socket.socket()
    theirs.connect(ours.getsockname())
    end = Connection(Transport(ours.accept()[0], "caller", clock=clock), Party.RECEIVER, clock=clock)
    clock.now += 19
    end.beat()
    clock.now += 2
    with pytest.raises(LinkLost, match="handshake"):
        end.beat()
    end.close()
    ours.close()
    theirs.close()


def test_a_silent_peer_is_asked_and_then_given_up(ends: Ends) -> None:
    ends.greet()
    clock = Clock()
    ends.sender._clock = clock
    ends.sender._heard_at = clock.now
    assert 4 < ends.sender.beat() <= 5
    clock.now += 5.1
    ends.sender.beat()
    assert len(ends.sender.session._pings[Party.SENDER]) == 1
    ends.sender.beat()
    assert len(ends.sender.session._pings[Party.SENDER]) == 1
    # It answers: all is well again.
    ends.until(lambda: not ends.sender.session._pings[Party.SENDER])
    assert ends.sender.beat() > 4
    # It does not: after a minute it counts as lost.
    for _ in range(59):
        clock.now += 1
        ends.sender.beat()
    clock.now += 1.1
    with pytest.raises(LinkLost, match="silent for 60 s"):
        ends.sender.beat()


def test_the_kernels_view_of_the_connection(ends: Ends) -> None:
    ends.greet()
    sock = ends.sender.transport._sock
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    info = ends.sender.transport.tcp_info()
    assert info is not None
    assert 0 < info.rtt_seconds < 5
    # Nobody reads: what was sent cannot all be gone.
    ends.sender.say_epoch(*epoch(1, 32 * MIB))
    info = ends.sender.transport.tcp_info()
    assert info is not None
    assert info.unacked_segments or info.unsent_bytes or ends.sender.transport.queued
    ends.close()
    assert ends.sender.transport.tcp_info() is None


# TLS.


def refusals(server: ssl.SSLContext | None, client: ssl.SSLContext | None, host: str = "127.0.0.1") -> Ends:
    """Both ends after the sender has tried to greet; neither may hear anything."""
    ends = Ends(Contexts(server, client), host)
    ends.sender.say(HELLO)
    ends.until(lambda: len(ends.errors) == 2)
    ends.close()
    assert ends.heard == {ends.sender: [], ends.receiver: []}
    return ends


def test_the_server_must_be_signed_by_our_authority(certificates: dict[str, TlsFiles]) -> None:
    ends = refusals(server_context(certificates["strange"]), client_context(certificates["client"]))
    error = ends.errors[ends.sender]
    assert isinstance(error, RefusedError)
    assert "--tls-ca" in str(error)
    assert isinstance(ends.errors[ends.receiver], RemoteError)


def test_the_client_must_be_signed_by_our_authority(certificates: dict[str, TlsFiles]) -> None:
    ends = refusals(server_context(certificates["server"]), client_context(certificates["strange"]))
    error = ends.errors[ends.sender]
    assert isinstance(error, RefusedError)
    assert "refused this side's certificate" in str(error)
    refused = ends.errors[ends.receiver]
    assert isinstance(refused, RemoteError)
    assert "caller's certificate was refused" in str(refused)


def test_a_client_that_trusts_another_authority_refuses(certificates: dict[str, TlsFiles]) -> None:
    ends = refusals(server_context(certificates["server"]), client_context(certificates["confused"]))
    assert isinstance(ends.errors[ends.sender], RefusedError)


def test_the_client_must_have_a_certificate(certificates: dict[str, TlsFiles]) -> None:
    bare = ssl.create_default_context(cafile=certificates["client"].authority)
    ends = refusals(server_context(certificates["server"]), bare)
    assert isinstance(ends.errors[ends.sender], RefusedError)
    assert "no certificate" in str(ends.errors[ends.receiver])


def test_the_servers_certificate_must_be_made_out_to_the_host_that_was_typed(certificates: dict[str, TlsFiles]) -> None:
    ends = refusals(server_context(certificates["server"]), client_context(certificates["client"]), "127.0.0.2")
    error = ends.errors[ends.sender]
    assert isinstance(error, RefusedError)
    assert "127.0.0.2" in str(error)


def test_older_tls_is_refused(certificates: dict[str, TlsFiles]) -> None:
    older = client_context(certificates["client"])
    older.minimum_version = ssl.TLSVersion.TLSv1_2
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    ends = refusals(server_context(certificates["server"]), older)
    assert isinstance(ends.errors[ends.receiver], RemoteError)
    assert "1.3" in str(ends.errors[ends.receiver])


def test_tls_13_is_what_is_spoken(certificates: dict[str, TlsFiles]) -> None:
    ends = Ends(Contexts(server_context(certificates["server"]), client_context(certificates["client"])))
    ends.greet()
    assert ends.sender.transport._tls is not None
    assert ends.sender.transport._tls._tls.version() == "TLSv1.3"
    ends.close()


def test_plain_against_tls_names_the_options(certificates: dict[str, TlsFiles]) -> None:
    ends = refusals(server_context(certificates["server"]), None)
    assert "--tls-" in str(ends.errors[ends.receiver])
    assert "--tls-" in str(ends.errors[ends.sender])


def test_tls_against_plain_names_the_options(certificates: dict[str, TlsFiles]) -> None:
    ends = Ends(Contexts(None, client_context(certificates["client"])))
    ends.sender.say(HELLO)
    error = ends.error(ends.receiver)
    assert isinstance(error, RemoteError)
    assert "--tls-" in str(error)
    refused = ends.error(ends.sender)
    assert isinstance(refused, LinkLost)
    assert "--tls-" in str(refused)
    ends.close()


@pytest.mark.parametrize("make", [server_context, client_context])
def test_files_that_do_not_serve(
    certificates: dict[str, TlsFiles], tmp_path: Path, make: Callable[[TlsFiles], ssl.SSLContext]
) -> None:
    good = certificates["server"]
    junk = tmp_path / "junk.pem"
    junk.write_text("not a certificate")
    for files, says in [
        (TlsFiles(str(tmp_path / "none"), good.key, good.authority), "--tls-cert"),
        (TlsFiles(good.certificate, str(tmp_path), good.authority), "--tls-key"),
        (TlsFiles(good.certificate, good.key, "/nowhere"), "--tls-ca"),
        (TlsFiles(good.certificate, good.key, str(junk)), "--tls-ca"),
        (TlsFiles(str(junk), good.key, good.authority), "PEM"),
        (TlsFiles(good.certificate, str(junk), good.authority), "PEM"),
        (TlsFiles(good.certificate, certificates["client"].key, good.authority), "another certificate"),
    ]:
        with pytest.raises(EnvironmentFault, match=says):
            make(files)

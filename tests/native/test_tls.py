"""TLS between the ends: both prove who they are, and whoever cannot gets nothing."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.certificates import Tls, authority, issue
from tests.support.deadline import eventually
from tests.support.filesystems import filesystem
from tests.support.operations import MIB, content
from tests.support.pair import Pair, Process, free_port, rsyncfs
from tests.support.proxy import CountingProxy

pytestmark = pytest.mark.native


class Certificates(NamedTuple):
    sender: Tls
    receiver: Tls
    stranger: Tls
    """Well made, but signed by somebody else."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("tls")
    ca, other = authority(directory), authority(directory, "other")
    stranger = issue(directory, "stranger", other)
    return Certificates(issue(directory, "sender", ca), issue(directory, "receiver", ca), stranger)


@pytest.fixture
def roots(scratch: Path) -> Iterator[tuple[Path, Path, Path]]:
    with filesystem("ext4", scratch / "fs") as mount:
        for name in ("source", "replica"):
            (mount / name).mkdir()
        (scratch / "state").mkdir()
        yield mount / "source", mount / "replica", scratch / "state"


def test_replication_over_tls(roots: tuple[Path, Path, Path], certificates: Certificates) -> None:
    source, replica, state = roots
    (source / "file").write_bytes(content(20 * MIB))
    port = free_port()
    with CountingProxy("127.0.0.1", port) as proxy:
        tls = certificates.sender, certificates.receiver
        pair = Pair(source, replica, state, tls=tls, connect=f"127.0.0.1:{proxy.port}")
        pair.port = port
        with pair:
            pair.assert_same()
            (source / "file").rename(source / "renamed")
            with (source / "renamed").open("r+b") as file:
                file.seek(MIB)
                file.write(content(5000))
            pair.assert_same()
            proxy.cut()
            (source / "more").write_bytes(content(MIB, 3))
            proxy.mend()
            pair.assert_same()
        assert proxy.out > 20 * MIB


def test_only_tls_1_3_is_spoken(roots: tuple[Path, Path, Path], certificates: Certificates) -> None:
    source, replica, state = roots
    with Pair(source, replica, state, tls=(certificates.sender, certificates.receiver)) as pair:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(certificates.sender.certificate, certificates.sender.key)
        context.load_verify_locations(certificates.sender.authority)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(("127.0.0.1", pair.port), timeout=10) as plain, pytest.raises(OSError):
            context.wrap_socket(plain, server_hostname="127.0.0.1").recv(1)
        pair.assert_same()


def refused(pair: Pair, what: str) -> None:
    """Start both; they must not come together, must say so, and the sender must hold or end with 3."""
    (pair.source / "secret").write_bytes(b"not for everybody")
    try:
        pair.start_receiver()
        pair.start_sender(ready=False)
        sender, receiver = pair.sender, pair.receiver
        assert sender is not None
        assert receiver is not None

        def said() -> bool:
            words = sender.text(100_000).lower() + receiver.text(100_000).lower()
            return what in words or not sender.running()

        eventually(said, 60, f"one of them says {what!r}")
        if not sender.running():
            assert sender.exit_code() == 3, sender.text()
        assert "ready" not in sender.lines
        assert "Traceback" not in sender.text(100_000) + receiver.text(100_000)
        assert receiver.running()
        assert not (pair.replica / "secret").exists()
    finally:
        pair.kill()


def test_a_sender_with_a_strangers_certificate(roots: tuple[Path, Path, Path], certificates: Certificates) -> None:
    source, replica, state = roots
    liar = certificates.stranger._replace(authority=certificates.sender.authority)
    refused(Pair(source, replica, state, tls=(liar, certificates.receiver)), "certificate")


def test_a_receiver_with_a_strangers_certificate(roots: tuple[Path, Path, Path], certificates: Certificates) -> None:
    source, replica, state = roots
    liar = certificates.stranger._replace(authority=certificates.sender.authority)
    refused(Pair(source, replica, state, tls=(certificates.sender, liar)), "certificate")


def test_a_sender_without_tls(roots: tuple[Path, Path, Path], certificates: Certificates) -> None:
    source, replica, state = roots
    pair = Pair(source, replica, state, tls=(certificates.sender, certificates.receiver))
    try:
        pair.start_receiver()
        words = ["send", str(source), pair.connect, "--state", str(state / "plain")]
        sender = Process(words, state / "plain.log")
        eventually(lambda: not sender.running() or pair.connect in sender.text(), 60, "it says what is wrong")
        assert "ready" not in sender.lines
        assert "Traceback" not in sender.text()
        sender.kill()
        pair.start_sender()
        pair.assert_same()
        pair.stop()
    finally:
        pair.kill()


def test_files_that_are_no_certificates(
    roots: tuple[Path, Path, Path], certificates: Certificates, tmp_path: Path
) -> None:
    source, _, state = roots
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("not a certificate\n")
    good = certificates.sender
    for tls in (
        good._replace(certificate=nonsense),
        good._replace(key=certificates.receiver.key),
        good._replace(authority=nonsense),
        good._replace(key=tmp_path / "missing.pem"),
    ):
        done = rsyncfs("send", source, "127.0.0.1:9", "--state", state, *tls.options())
        assert done.returncode in (2, 3), done
        assert "Traceback" not in done.stderr
        assert ".pem" in done.stderr or ".key" in done.stderr, done.stderr

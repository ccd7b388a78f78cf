"""Whatever is wrong with what the commands are given: a code, a sentence that helps, no traceback, nothing deleted."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from replicator.errors import RemoteError
from replicator.link import message as m
from replicator.link.address import Address
from replicator.link.connection import LinkLost
from replicator.model import FileId
from replicator.uplink import Uplink
from tests.support.deadline import eventually
from tests.support.filesystems import filesystem, run, unmount
from tests.support.helpers import helper
from tests.support.liar import Liar
from tests.support.operations import MIB, content
from tests.support.oracle import differences
from tests.support.pair import COMMAND, Pair, Process, environment, free_port, rsyncfs

pytestmark = pytest.mark.native

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
WITHOUT_ADMIN = ["setpriv", "--bounding-set=-bpf,-sys_admin,-perfmon"]
WITHOUT_BTF = [
    *("unshare", "--mount", "--propagation", "private"),
    *("sh", "-c", 'mount -t tmpfs none /sys/kernel/btf && exec "$@"', "sh"),
]


def complains(done: subprocess.CompletedProcess[str], codes: Sequence[int], *words: str) -> None:
    """The contract for a command that cannot work: one of `codes`, and a sentence with all of `words`."""
    said = done.stderr.strip()
    assert done.returncode in codes, (done.returncode, said, done.stdout)
    assert "Traceback" not in said, said
    assert "ready" not in done.stdout.split(), done.stdout
    last = said.splitlines()[-1] if said else ""
    missing = [word for word in words if word.lower() not in said.lower()]
    assert not missing, f"{missing} not in {said!r}"
    assert 20 < len(last) < 600, said


@pytest.fixture
def roots(scratch: Path) -> Iterator[tuple[Path, Path, Path]]:
    """A source and a replica on a filesystem, and a directory for state."""
    with filesystem("ext4", scratch / "fs") as mount:
        for name in ("source", "replica"):
            (mount / name).mkdir()
        (scratch / "state").mkdir()
        yield mount / "source", mount / "replica", scratch / "state"


@pytest.fixture
def pair(roots: tuple[Path, Path, Path]) -> Iterator[Pair]:
    """A pair that runs, with something replicated; both ends killed at the end, for the test ends one by itself."""
    source, replica, state = roots
    for number in range(10):
        (source / f"file{number}").write_bytes(content(10_000, number))
    made = Pair(source, replica, state)
    try:
        made.start()
        made.assert_same()
        yield made
    finally:
        made.kill()


def send(source: Path, state: Path, *words: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return rsyncfs("send", source, f"127.0.0.1:{free_port()}", "--state", state, *words, prefix=prefix)


def receive(root: Path, state: Path, *words: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    listen = [] if "--listen" in words else ["--listen", f"127.0.0.1:{free_port()}"]
    return rsyncfs("receive", "--root", root, "--state", state, *listen, *words, prefix=prefix)


@pytest.mark.parametrize("command", [send, receive])
def test_not_root(roots: tuple[Path, Path, Path], command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    source, _, state = roots
    for path in (source, state):
        path.chmod(0o777)
    complains(command(source, state, prefix=NOBODY), [3], "root")


def test_bpf_refused(roots: tuple[Path, Path, Path]) -> None:
    source, _, state = roots
    complains(send(source, state, prefix=[str(helper("nobpf"))]), [3], "bpf")


def test_capabilities_missing(roots: tuple[Path, Path, Path]) -> None:
    source, _, state = roots
    complains(send(source, state, prefix=WITHOUT_ADMIN), [3], "CAP_SYS_ADMIN")


def test_no_btf(roots: tuple[Path, Path, Path]) -> None:
    source, _, state = roots
    complains(send(source, state, prefix=WITHOUT_BTF), [3], "btf")


def test_doctor_says_what_is_missing() -> None:
    for prefix, word in (([str(helper("nobpf"))], "bpf"), (WITHOUT_BTF, "btf"), (NOBODY, "root")):
        done = rsyncfs("doctor", prefix=prefix)
        said = done.stdout + done.stderr
        assert done.returncode in (1, 3), said
        assert word in said.lower(), said
        assert "Traceback" not in said, said


def test_doctor_finds_nothing_wrong_here() -> None:
    done = rsyncfs("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("tracepoint", "ext4", "xfs", "btrfs", "tmpfs"):
        assert word in done.stdout
    report = json.loads(rsyncfs("doctor", "--json").stdout)
    assert (report["usable"], report["sensor"]) == (True, "tracepoint")


def test_source_missing(roots: tuple[Path, Path, Path]) -> None:
    source, _, state = roots
    complains(send(source / "nowhere", state), [3], str(source / "nowhere"))


def test_source_is_a_file(roots: tuple[Path, Path, Path]) -> None:
    source, _, state = roots
    (source / "file").write_bytes(b"x")
    complains(send(source / "file", state), [3], str(source / "file"), "director")
    assert (source / "file").read_bytes() == b"x"


def test_replica_root_missing_or_a_file(roots: tuple[Path, Path, Path]) -> None:
    _, replica, state = roots
    (replica / "file").write_bytes(b"x")
    complains(receive(replica / "nowhere", state), [3], str(replica / "nowhere"))
    complains(receive(replica / "file", state), [3], str(replica / "file"), "director")


def test_source_without_file_handles(roots: tuple[Path, Path, Path], scratch: Path) -> None:
    _, _, state = roots
    point = scratch / "ramfs"
    point.mkdir()
    run("mount", "-t", "ramfs", "ramfs", point)
    try:
        (point / "source").mkdir()
        complains(send(point / "source", state), [3], "handle")
    finally:
        unmount(point)


@pytest.mark.parametrize("which", ["replica inside source", "source inside replica", "the same"])
def test_one_root_inside_the_other(roots: tuple[Path, Path, Path], which: str) -> None:
    top, _, state = roots
    inner = top / "inner"
    inner.mkdir()
    (inner if which == "source inside replica" else top / "other").mkdir(exist_ok=True)
    source, replica = {
        "replica inside source": (top, inner),
        "source inside replica": (inner, top),
        "the same": (inner, inner),
    }[which]
    if which != "source inside replica":
        (top / "file").write_bytes(b"the user's")
    else:
        (inner / "file").write_bytes(b"the user's")
    before = sorted(os.walk(top))
    port = free_port()
    receiver = Process(
        *(["receive", "--root", str(replica), "--listen", f"127.0.0.1:{port}", "--state", str(state / "r")],),
        *(state / "receive.log",),
    )
    try:
        eventually(lambda: "ready" in receiver.lines or not receiver.running(), 60, "the receiver is up or refuses")
        if receiver.running():
            done = rsyncfs("send", source, f"127.0.0.1:{port}", "--state", state / "s")
            complains(done, [3], "inside" if which != "the same" else "")
        else:
            # A replica that holds the source is populated: refused before anybody connects.
            assert receiver.exit_code() == 3
        assert "Traceback" not in receiver.text()
    finally:
        receiver.kill()
    assert sorted(os.walk(top)) == before


def test_port_taken(roots: tuple[Path, Path, Path]) -> None:
    _, replica, state = roots
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        complains(receive(replica, state, "--listen", taken), [3], taken.split(":")[1])
        complains(receive(replica, state, "--metrics", taken), [3], taken.split(":")[1])


@pytest.mark.parametrize("address", ["0.0.0.0", "10.77.7.7", "[::]"])
def test_no_plaintext_off_loopback(roots: tuple[Path, Path, Path], address: str) -> None:
    source, replica, state = roots
    port = free_port()
    complains(receive(replica, state, "--listen", f"{address}:{port}"), [2, 3], "--tls-")
    complains(rsyncfs("send", source, f"10.77.7.7:{port}", "--state", state), [2, 3], "--tls-")


@pytest.mark.parametrize(
    "words",
    [
        ["send"],
        ["receive"],
        ["send", "/", "127.0.0.1:port"],
        ["send", "/", "127.0.0.1:99999"],
        ["send", "/", "127.0.0.1:7", "--sensor", "crystal"],
        ["send", "/", "127.0.0.1:7", "--scan", "crystal"],
        ["receive", "--root", "/", "--listen", "127.0.0.1:"],
        ["receive", "--root", "/", "--tls-cert", "/dev/null"],
        ["frobnicate"],
        ["wait", "--timeout", "soon"],
    ],
    ids=" ".join,
)
def test_usage(words: list[str], tmp_path: Path) -> None:
    state = [] if words == ["frobnicate"] else ["--state", str(tmp_path / "state")]
    done = rsyncfs(*words, *state)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_garbage_at_the_receivers_door(pair: Pair) -> None:
    assert pair.receiver is not None
    for number, garbage in enumerate((b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\xff" * 100_000, content(5000), b"r")):
        with socket.create_connection(("127.0.0.1", pair.port), timeout=10) as intruder:
            try:
                intruder.sendall(garbage)
                intruder.shutdown(socket.SHUT_WR)
                while intruder.recv(4096):
                    pass
            except OSError:
                pass  # closing on us early is as good
        (pair.source / "after").write_bytes(b"%d" % number)
        pair.assert_same()
    assert pair.healthy()
    assert "Traceback" not in pair.receiver.text(100_000)
    pair.stop()


def test_hello_and_goodbye_in_one_breath(pair: Pair) -> None:
    """As a sender does that is stopped while it connects."""
    assert pair.receiver is not None
    hello = m.Hello("00000000-0000-4000-8000-000000000001", FileId(0, 0, 2, 0), 1)
    words = b"".join(bytes(part) for said in (hello, m.Bye("the sender stops")) for part in m.encode(said))
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", pair.port), timeout=10) as caller:
            caller.sendall(words)
            while caller.recv(4096):
                pass
    (pair.source / "after").write_bytes(b"after")
    pair.assert_same()
    assert "Traceback" not in pair.receiver.text(100_000)
    pair.stop()


def test_a_peer_that_says_nothing_holds_nobody_up(pair: Pair) -> None:
    with socket.create_connection(("127.0.0.1", pair.port)):
        (pair.source / "beside").write_bytes(b"it")
        pair.assert_same()
    pair.stop()


@pytest.mark.parametrize(
    "lie",
    [
        {},
        {"directories": 7, "ids": 7},
        {"directories": [["1.0.2.3", ["../../etc"]]], "ids": ["no id"]},
        {"directories": [["1.0.2.3", ["\u20ac"]]], "ids": [{}]},
        {"error": ["nothing"]},
    ],
    ids=["nothing", "number", "path", "unicode", "error"],
)
def test_a_receiver_that_answers_nonsense(roots: tuple[Path, Path, Path], lie: dict[str, Any]) -> None:
    """It is left, told so in a sentence, and tried again: it may have been replaced by an honest one."""
    source, _, state = roots
    (source / "file").write_bytes(b"file")
    with Liar(lambda question: lie) as liar:
        sender = Process(["send", str(source), liar.address, "--state", str(state / "send")], state / "send.log")
        try:
            eventually(lambda: liar.lies >= 2, 30, "it is asked again after its first lie")
            assert sender.running()
            assert "the protocol has" in sender.text()
            assert "Traceback" not in sender.text()
            assert "ready" not in sender.lines
        finally:
            sender.stop()
        assert sender.exit_code() == 0


def test_nonsense_makes_the_pauses_longer_and_a_lost_connection_does_not() -> None:
    hello = m.Hello("00000000-0000-4000-8000-000000000001", FileId(0, 0, 2, 0), 1)
    with Liar(lambda question: {}) as liar, selectors.PollSelector() as selector:
        host, port = liar.address.split(":")
        uplink = Uplink(Address(host, int(port)), None, selector, lambda: hello, lambda: 0)

        def connected() -> bool:
            uplink.turn()
            uplink.retune()
            return uplink.connection is not None

        pauses = []
        errors: list[LinkLost | RemoteError] = [*[RemoteError("nonsense")] * 4, LinkLost("the cable")]
        for error in errors:
            eventually(connected, 30, "it connects again")
            uplink.drop(error)
            pauses.append(uplink.due())
        assert pauses[3] > 0.3, pauses
        assert pauses[4] <= 0.1, pauses
        uplink.close("done")


def _answer(listener: socket.socket, answer: bytes, met: threading.Event) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            met.set()
            try:
                connection.sendall(answer)
                while connection.recv(65536):
                    pass
            except OSError:
                continue


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10, b"rsfs\x63" + bytes(100), content(100_000)],
    ids=["http", "another-version", "noise"],
)
def test_a_receiver_that_speaks_something_else(roots: tuple[Path, Path, Path], answer: bytes) -> None:
    """The sender says so and holds, or ends with 3; it never says ready, and never dies of it."""
    source, _, state = roots
    (source / "file").write_bytes(b"x")
    met = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_answer, args=(listener, answer, met), daemon=True).start()
        port = listener.getsockname()[1]
        sender = Process(["send", str(source), f"127.0.0.1:{port}", "--state", str(state)], state / "send.log")
        try:
            eventually(met.is_set, 60, "the sender connects")
            eventually(lambda: "peer" in sender.text() or not sender.running(), 30, "it says what is wrong")
            if not sender.running():
                assert sender.exit_code() == 3, sender.text()
            assert "ready" not in sender.lines
            assert "Traceback" not in sender.text()
        finally:
            sender.kill()
        listener.shutdown(socket.SHUT_RDWR)


def test_nobody_listens(roots: tuple[Path, Path, Path]) -> None:
    """The receiver may come later: the sender holds, and says where it tries."""
    source, replica, state = roots
    (source / "file").write_bytes(b"x")
    pair = Pair(source, replica, state)
    try:
        pair.start_sender(ready=False)
        sender = pair.sender
        assert sender is not None
        eventually(lambda: str(pair.port) in sender.text(), 60, "it says where it tries")
        assert sender.running()
        assert "ready" not in sender.lines
        pair.start_receiver()
        sender.ready()
        pair.assert_same()
        pair.stop()
    finally:
        pair.kill()


def holds(pair: Pair, *words: str) -> None:
    """Wait until a side has stopped with 3 or `wait` says yes no more, and one of `words` has been said about it."""

    def said() -> str:
        return "".join(end.text(100_000) for end in (pair.sender, pair.receiver) if end is not None)

    def held() -> bool:
        ended = [end for end in (pair.sender, pair.receiver) if end is not None and not end.running()]
        assert all(end.exit_code() == 3 for end in ended), [end.text() for end in ended]
        return (bool(ended) or pair.try_wait(1)[0] != 0) and any(word in said() for word in words)

    eventually(held, 60, f"the pair stops or holds, and says one of {words}", every=0.2)
    assert "Traceback" not in said()


def test_source_unmounted_while_running(scratch: Path) -> None:
    """What stands where the mount was is not the source, and an empty directory is not an empty tree."""
    with filesystem("xfs", scratch / "r") as replica:
        with filesystem("ext4", scratch / "s") as source:
            (source / "tree").mkdir()
            (source / "tree/file").write_bytes(content(MIB))
            (replica / "tree").mkdir()
            pair = Pair(source / "tree", replica / "tree", scratch / "state")
            try:
                pair.start()
                pair.assert_same()
                run("umount", "--lazy", source)
                holds(pair, "unmounted", "not mounted")
                assert (replica / "tree/file").read_bytes() == content(MIB)
            finally:
                pair.kill()


def test_source_directory_replaced_while_running(pair: Pair) -> None:
    pair.source.rename(pair.source.with_name("moved away"))
    pair.source.mkdir()
    holds(pair, "replaced")
    assert differences(pair.source.with_name("moved away"), pair.replica) == []


def test_source_emptied_while_the_sender_was_away(pair: Pair) -> None:
    """Another directory stands at the source's path when the sender starts again: not the tree that it knows."""
    assert pair.sender is not None
    pair.sender.stop()
    pair.source.rename(pair.source.with_name("moved away"))
    pair.source.mkdir()
    pair.start_sender(ready=False)
    sender = pair.sender
    eventually(lambda: not sender.running() or "another root" in sender.text(), 60, "it ends, or says why it holds")
    assert "ready" not in sender.lines
    assert "Traceback" not in sender.text()
    if not sender.running():
        assert sender.exit_code() == 3, sender.text()
    assert differences(pair.source.with_name("moved away"), pair.replica) == []


def test_replicas_root_replaced_while_running(pair: Pair) -> None:
    away = pair.replica.with_name("moved away")
    pair.replica.rename(away)
    pair.replica.mkdir()
    (pair.source / "new").write_bytes(b"for a root that is gone")
    holds(pair, "replaced", "another directory")
    assert os.listdir(pair.replica) == []
    assert {f"file{number}" for number in range(10)} <= set(os.listdir(away))


def test_replicas_root_replaced_while_the_receiver_was_away(pair: Pair) -> None:
    """A vanished replica is not an empty one: the state knows what ought to be there."""
    assert pair.receiver is not None
    pair.receiver.stop()
    shutil.rmtree(pair.replica)
    pair.replica.mkdir()
    pair.start_receiver(ready=False)
    receiver = pair.receiver
    assert receiver is not None
    assert receiver.exit_code(60) == 3, receiver.text()
    assert "Traceback" not in receiver.text()
    assert "ready" not in receiver.lines
    assert sorted(os.listdir(pair.source)) == [f"file{number}" for number in range(10)]


def test_two_processes_with_one_state_directory(pair: Pair) -> None:
    complains(send(pair.source, pair.send_state), [3], str(pair.send_state))
    other = pair.replica.with_name("other")
    other.mkdir()
    complains(receive(other, pair.receive_state), [3], str(pair.receive_state))
    complains(receive(pair.replica, pair.state_dir / "third"), [3])
    pair.assert_same()
    pair.stop()


def test_full_replica_holds_and_recovers(scratch: Path) -> None:
    """A full disk is said, kept owed, and made up for when there is room again."""
    with (
        filesystem("ext4", scratch / "s") as source,
        filesystem("ext4", scratch / "r", size=32 * MIB) as replica,
    ):
        for top in (source, replica):
            (top / "tree").mkdir()
        (replica / "ballast").write_bytes(bytes(14 * MIB))
        with Pair(source / "tree", replica / "tree", scratch / "state") as pair:
            (source / "tree/before").write_bytes(content(MIB))
            pair.assert_same()
            (source / "tree/big").write_bytes(content(14 * MIB))
            assert pair.try_wait(3)[0] == 1
            assert pair.healthy()
            said = "".join(end.text() for end in (pair.sender, pair.receiver) if end)
            assert "space" in said.lower(), said
            (replica / "ballast").unlink()
            pair.assert_same(timeout=60)


def test_a_replica_that_refuses_for_a_while(scratch: Path) -> None:
    """Read-only, then with files that nobody may change: held, said, tried now and then, and over by itself."""
    with filesystem("ext4", scratch / "s") as one, filesystem("ext4", scratch / "r") as other:
        source, replica = one / "tree", other / "tree"
        for top in (source, replica):
            top.mkdir()
        with Pair(source, replica, scratch / "state") as pair:
            for number in range(8):
                (source / f"file{number}").write_bytes(content(5000, number))
            (source / "directory").mkdir()
            pair.assert_same()
            run("mount", "-o", "remount,ro", other)
            (source / "file1").write_bytes(b"new")
            (source / "file2").rename(source / "renamed")
            (source / "file3").unlink()
            (source / "file4").chmod(0o600)
            (source / "directory").rename(source / "moved")
            epochs = pair.metrics().total("rsyncfs_epochs_total")
            assert pair.try_wait(3)[0] == 1
            assert pair.metrics().total("rsyncfs_epochs_total") - epochs < 200, "it is tried again without a pause"
            assert pair.status()["refused"] != []
            run("mount", "-o", "remount,rw", other)
            pair.assert_same(timeout=60)
            assert pair.status()["refused"] == []

            for name in ("file5", "file6"):
                run("chattr", "+i", replica / name)
            (source / "file5").write_bytes(b"changed")
            (source / "file6").unlink()
            (source / "file7").write_bytes(b"goes on")
            eventually(lambda: (replica / "file7").read_bytes() == b"goes on", 20, "the others are replicated")
            eventually(lambda: "file5" in pair.status()["refused"], 20, "what is refused is said")
            for name in ("file5", "file6"):
                run("chattr", "-i", replica / name)
            pair.assert_same(timeout=60)
            assert pair.status()["refused"] == []
            said = "".join(end.text(100_000) for end in (pair.sender, pair.receiver) if end)
            assert "Read-only file system" in said
            assert "Traceback" not in said


def test_help_names_every_command() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True, env=environment())
    for command in ("receive", "send", "wait", "status", "verify", "doctor", "trace", "demo"):
        assert command in done.stdout

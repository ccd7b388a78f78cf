"""Hooks outlive their process: what changes while no sender runs is told to the next one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from replicator.capture.names import Names
from replicator.errors import EnvironmentFault
from replicator.keeper import bpffs
from replicator.keeper.bpffs import sets
from replicator.keeper.holding import HolderStore
from replicator.keeper.hooks import unhook
from replicator.keeper.pins import Pins, key_of
from tests.native.keeping import Watcher, forked, gone, holders, kill_readers, programs, write
from tests.support.deadline import eventually
from tests.support.filesystems import filesystem, run, unmount
from tests.support.pair import Pair, rsyncfs

pytestmark = pytest.mark.native


@pytest.fixture
def source(scratch: Path) -> Iterator[Path]:
    with filesystem("ext4", scratch / "fs") as point:
        yield point


@pytest.fixture
def state(scratch: Path) -> Iterator[Path]:
    place = scratch / "state"
    place.mkdir()
    yield place
    unhook(place)
    eventually(lambda: not holders(place), 10, "nobody holds a queue of names")


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_what_is_written_while_nobody_runs_is_told_just_so(source: Path, state: Path, how: str) -> None:
    file = source / "file"
    with contextlib.ExitStack() as running:
        go, told = os.pipe()

        def first() -> None:
            with Watcher(source, state) as watcher:
                assert not watcher.adopted
                write(file, 0, 10)
                watcher.offsets(file)
                watcher.told()
                os.write(told, b"x")
                if how == "SIGKILL":
                    signal.pause()
            os.write(told, b"y")

        running.enter_context(forked(first))
        assert os.read(go, 1) == b"x"
        if how == "SIGTERM":
            assert os.read(go, 1) == b"y"
    os.close(go)
    os.close(told)
    hooks = programs(state)
    offsets = write(file, 10, 500)
    (source / "new").touch()
    (source / "new").rename(source / "newer")
    with Watcher(source, state) as watcher:
        assert watcher.adopted
        assert programs(state) == hooks
        assert watcher.offsets(file) == offsets
        assert watcher.told() == {b"new", b"newer"}
        assert not any(watcher.sensor.losses().values())
        assert watcher.offsets(file) == write(file, 600, 0)
        offsets = write(file, 600, 5)
        assert watcher.offsets(file) == offsets


def test_fifty_kills_of_a_reader_under_load_lose_no_record_and_no_name(
    source: Path, state: Path, scratch: Path
) -> None:
    kill_readers(source, state, scratch, 50)


@pytest.mark.parametrize("reads", [1, 2, 5])
def test_a_kill_in_the_middle_of_a_read_of_names_loses_none(
    source: Path, state: Path, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has handed the events over, and nobody was told how many bytes they are."""
    names = {b"n%d" % number for number in range(3000)}
    with Watcher(source, state):
        pass
    for name in names:
        (source / os.fsdecode(name)).touch()
    readv = os.readv

    def dying(fd: int, buffers: Sequence[memoryview]) -> int:
        nonlocal reads
        reads -= 1
        got = readv(fd, [buffers[0][:40_000]])
        if not reads:
            os.kill(os.getpid(), signal.SIGKILL)
        return got

    def read() -> None:
        monkeypatch.setattr(os, "readv", dying)
        with Watcher(source, state) as watcher:
            watcher.told()

    with forked(read) as process:
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    (source / "last").touch()
    with Watcher(source, state) as watcher:
        assert watcher.adopted
        assert watcher.told() == names | {b"last"}


def test_a_ring_that_ran_over_meanwhile_is_a_loss_until_it_is_acted_on(source: Path, state: Path) -> None:
    file = source / "file"
    with Watcher(source, state, ring_bytes=4096) as watcher:
        write(file, 0, 1000)
        before = watcher.sensor.losses()
        assert before["ring_full"] > 0
        watcher.sensor.forget_lost(watcher.sensor.lost_inodes())
        watcher.sensor.acknowledge(before)
        watcher.offsets(file)
    write(file, 1000, 100)
    for acted in (False, True):
        with Watcher(source, state, ring_bytes=4096) as watcher:
            losses = watcher.sensor.losses()
            assert watcher.sensor.acknowledged() == before
            assert losses["ring_full"] > before["ring_full"]
            lost = watcher.sensor.lost_inodes()
            assert {id.ino for id in lost} == {file.stat().st_ino}
            if acted:
                watcher.sensor.forget_lost(lost)
                watcher.sensor.acknowledge(losses)
    with Watcher(source, state, ring_bytes=4096) as watcher:
        assert watcher.sensor.acknowledged() == losses == watcher.sensor.losses()
        assert watcher.sensor.lost_inodes() == []


def test_untold_repeats_end_with_the_process_that_may_have_read_what_they_rely_on(source: Path, state: Path) -> None:
    """A repeat that was told to a process that is dead is told again: its read died with it."""
    file = source / "file"
    file.write_bytes(bytes(8192))
    fd = os.open(file, os.O_WRONLY)
    with Watcher(source, state) as watcher:
        epoch = watcher.sensor.fence()
        for _ in range(5):
            os.pwrite(fd, b"y" * 4096, 0)
        assert watcher.sensor.untold() > 0
        watcher.offsets(file)
    with Watcher(source, state) as watcher:
        assert watcher.sensor.untold() == 0
        os.pwrite(fd, b"z" * 4096, 0)
        assert watcher.offsets(file) == [0]
        assert watcher.sensor.fence() > epoch + 1
    os.close(fd)


@pytest.mark.parametrize(
    "what", ["a larger ring", "a smaller ring", "another map", "a part is missing", "no signature", "a broken ring"]
)
def test_what_is_not_just_so_is_replaced(source: Path, state: Path, what: str) -> None:
    with Watcher(source, state, ring_bytes=1 << 20):
        pass
    hooks, place = programs(state), sets() / key_of(state)
    ring_bytes, lost_inodes = 1 << 20, 1024
    if what == "a larger ring":
        ring_bytes = 1 << 21
    elif what == "a smaller ring":
        ring_bytes = 1 << 19
    elif what == "another map":
        lost_inodes = 512
    elif what == "a part is missing":
        next(place.glob("link_*")).unlink()
    elif what == "no signature":
        (place / "signature").unlink()
    else:
        with Watcher(source, state, ring_bytes=1 << 20) as watcher:
            ring = watcher.sensor._mapped()
            ring._consumer[0] = int(ring.produced()) + 4096
    file = source / "file"
    write(file, 0, 10)
    with Watcher(source, state, ring_bytes=ring_bytes, lost_inodes=lost_inodes) as watcher:
        assert not watcher.sensor.adopted
        assert watcher.names is not None
        assert not watcher.names.adopted
        assert watcher.offsets(file) == []
        assert watcher.offsets(file) == write(file, 10, 0)
        offsets = write(file, 10, 10)
        assert watcher.offsets(file) == offsets
        gone(hooks)
        assert not hooks & programs(state)
        assert len(holders(state)) == 1
    with Watcher(source, state, ring_bytes=ring_bytes, lost_inodes=lost_inodes) as watcher:
        assert watcher.adopted


def test_whoever_is_killed_while_it_pins_leaves_no_set_that_passes_for_whole(
    source: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = Pins.pin
    for last in (0, 1, 7, 20, 40):
        left = last

        def dying(self: Pins, name: str, descriptor: int) -> None:
            nonlocal left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            pin(self, name, descriptor)

        def start(dying: object = dying) -> None:
            monkeypatch.setattr(Pins, "pin", dying)
            Watcher(source, state)

        process = os.fork()
        if not process:
            start()
            os._exit(1)
        assert os.waitpid(process, 0)[1] == signal.SIGKILL
        assert not (sets() / key_of(state) / "signature").exists()
        half = programs(state)
        with Watcher(source, state) as watcher:
            assert not watcher.adopted
            whole = programs(state)
        assert not half & whole
        if half:
            gone(half)
        with Watcher(source, state) as watcher:
            assert watcher.adopted
        unhook(state)
        gone(whole)


def test_a_filesystem_that_was_unmounted_meanwhile_is_another(scratch: Path, state: Path) -> None:
    with filesystem("ext4", scratch / "remounted") as point:
        with Watcher(point, state) as watcher:
            device = watcher.source.kernel_dev
        loop = run("findmnt", "-n", "-o", "SOURCE", point).strip()
        kept = os.open(loop, os.O_RDONLY)  # so that the loop device is not given up, and is the same afterwards
        try:
            run("umount", point)
            run("mount", loop, point)
            with Watcher(point, state) as watcher:
                assert watcher.source.kernel_dev == device
                assert "unmounted" in watcher.sensor.not_adopted
                assert not watcher.adopted
        finally:
            os.close(kept)


@pytest.mark.parametrize("fstype", ["xfs", "btrfs", "tmpfs"])
def test_hooks_of_every_filesystem_are_taken_over(scratch: Path, state: Path, fstype: str) -> None:
    with filesystem(fstype, scratch / "other") as point:
        (point / "tree").mkdir()
        for adopted in (False, True, True):
            with Watcher(point / "tree", state) as watcher:
                assert watcher.adopted == adopted
                assert b"new" in watcher.told() or not adopted
            (point / "tree" / "new").touch()
            (point / "tree" / "new").unlink()


def test_what_was_read_and_not_done_is_told_to_the_next(source: Path, state: Path) -> None:
    with Watcher(source, state) as watcher:
        assert watcher.names is not None
        (source / "one").touch()
        watcher.names.drain_queued()
    (source / "two").touch()
    with Watcher(source, state) as watcher:
        assert watcher.told() == {b"one", b"two"}
    with Watcher(source, state) as watcher:
        assert watcher.told() == set()


def test_two_senders_of_one_filesystem_have_hooks_of_their_own(source: Path, scratch: Path, state: Path) -> None:
    other = scratch / "other"
    other.mkdir()
    with Watcher(source, state), Watcher(source, other):
        assert not programs(state) & programs(other)
    hooks = programs(other)
    file = source / "file"
    offsets = write(file, 0, 10)
    unhook(other)
    gone(hooks)
    with Watcher(source, state) as watcher:
        assert watcher.adopted
        assert watcher.offsets(file) == offsets


def test_hooks_whose_state_directory_is_gone_are_removed_by_the_next_sender(
    source: Path, scratch: Path, state: Path
) -> None:
    other = scratch / "other"
    other.mkdir()
    with Watcher(source, other):
        pass
    hooks = programs(other)
    assert len(holders(other)) == 1
    shutil.rmtree(other)
    eventually(lambda: not holders(other), 10, "who holds the queue of names ends")
    with Watcher(source, state):
        pass
    assert not programs(other)
    gone(hooks)


def test_a_state_directory_that_was_made_anew_is_another(source: Path, state: Path) -> None:
    with Watcher(source, state):
        pass
    shutil.rmtree(state)
    state.mkdir()
    with Watcher(source, state) as watcher:
        assert not watcher.sensor.adopted
        assert not watcher.adopted


def test_hooks_in_use_are_nobody_elses(source: Path, scratch: Path, state: Path) -> None:
    other = scratch / "other"
    other.mkdir()
    with Watcher(source, other):
        moved = other.rename(scratch / "moved")  # it looks as if it were gone
        with Watcher(source, state):
            assert programs(other)
        moved.rename(other)
    with pytest.raises(EnvironmentFault, match="another process has the hooks"), Watcher(source, state):
        Watcher(source, state)
    unhook(other)


def test_unhook_removes_what_is_left_and_says_what_cannot_be(source: Path, scratch: Path) -> None:
    state = scratch / "to unhook"
    assert rsyncfs("unhook", "--state", state).returncode == 0
    assert not state.exists()
    state.mkdir()
    with Watcher(source, state):
        hooks = programs(state)
    (holder,) = holders(state)
    os.kill(holder, signal.SIGSTOP)
    done = rsyncfs("unhook", "--state", state)
    os.kill(holder, signal.SIGCONT)
    assert done.returncode == 3
    assert done.stderr.startswith(f"rsyncfs: the process {holder} that holds the hooks of {state} does not end")
    for _ in range(2):
        done = rsyncfs("unhook", "--state", state)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert not holders(state)
        assert not (sets() / key_of(state)).exists()
    gone(hooks)
    assert list(state.iterdir()) == []


def test_the_holder_outlives_whoever_started_it_and_holds_nothing_of_theirs(source: Path, state: Path) -> None:
    """A shell starts a sender, its output goes into a pipe, and all of that is killed."""
    program = (
        "import os, sys, signal\nfrom pathlib import Path\nfrom tests.native.keeping import Watcher\n"
        "Watcher(Path(sys.argv[1]), Path(sys.argv[2]))\nprint('ready', flush=True)\nsignal.pause()\n"
    )
    words = [sys.executable, "-c", program, str(source), str(state)]
    shell = subprocess.Popen(
        ["sh", "-c", '"$@"; true', "sh", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    assert shell.stdout is not None
    assert shell.stdout.readline() == "ready\n"
    os.killpg(shell.pid, signal.SIGKILL)
    assert shell.communicate(timeout=20) == ("", "")  # the pipes are closed
    (holder,) = holders(state)
    place = Path(f"/proc/{holder}")
    assert place.joinpath("cwd").resolve() == Path("/")
    assert os.getsid(holder) != os.getsid(0)
    assert {os.stat(place / "fd" / str(number)).st_rdev for number in range(3)} == {os.stat("/dev/null").st_rdev}
    rss = next(int(line.split()[1]) for line in (place / "status").read_text().splitlines() if "VmRSS" in line)
    assert rss < 16 * 1024
    (source / "new").touch()
    with Watcher(source, state) as watcher:
        assert watcher.adopted
        assert watcher.told() == {b"new"}
        assert holders(state) == [holder]


def test_where_nothing_can_be_kept_it_goes_on_without(
    source: Path, state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, scratch: Path
) -> None:
    nowhere = scratch / "nowhere"
    monkeypatch.setattr(bpffs, "MOUNT", nowhere)
    with Watcher(source, state) as watcher:
        file = source / "file"
        offsets = write(file, 0, 3)
        assert watcher.offsets(file) == offsets
        assert not watcher.hooks.state()["kept"]
    assert [record.getMessage() for record in caplog.records if record.name.startswith("replicator.keeper")] == [
        f"the hooks will end with this process: there is no bpffs on {nowhere}, and none can be mounted (No such file "
        "or directory)"
    ]
    assert not holders(state)


class Systemd:
    """The other end of sd_notify(3), with a store for descriptors."""

    def __init__(self, directory: Path) -> None:
        self.address = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.address))
        self._socket.setblocking(False)
        self.store: dict[str, int] = {}

    def hear(self) -> None:
        """Take all messages."""
        while True:
            try:
                said, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 8)
            except BlockingIOError:
                return
            fields = dict(line.split("=", 1) for line in said.decode().splitlines())
            name = fields["FDNAME"]
            if fields.get("FDSTORE") == "1":
                assert name not in self.store
                (self.store[name],) = descriptors
            else:
                assert fields["FDSTOREREMOVE"] == "1"
                if name in self.store:
                    os.close(self.store.pop(name))

    def close(self) -> None:
        self._socket.close()
        for descriptor in self.store.values():
            os.close(descriptor)


SERVICE = """
import os, sys
names = sys.argv[4].split(":") if sys.argv[4] else []
for at, descriptor in enumerate(map(int, sys.argv[5:])):
    os.dup2(descriptor, 100 + at)
for at, name in enumerate(names):
    os.dup2(100 + at, 3 + at)
environ = {"NOTIFY_SOCKET": sys.argv[3], "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(names)),
    "LISTEN_FDNAMES": ":".join(names)}
from pathlib import Path
from tests.native.keeping import Watcher
with Watcher(Path(sys.argv[1]), Path(sys.argv[2]), environ=environ) as watcher:
    print(watcher.adopted, sorted(watcher.told()))
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & environ.keys()
"""


def test_systemd_keeps_the_queue_of_a_service(source: Path, state: Path, scratch: Path) -> None:
    systemd = Systemd(scratch)

    def service(stored: bool = True) -> str:
        store = dict(systemd.store) if stored else {}
        names = ":".join(["somebody-elses", *store]) if store else ""
        descriptors = [os.dup(0), *store.values()] if store else []
        done = subprocess.run(
            [sys.executable, "-c", SERVICE, source, state, systemd.address, names, *map(str, descriptors)],
            pass_fds=descriptors,
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        if store:
            os.close(descriptors[0])
        assert done.returncode == 0, done.stderr
        systemd.hear()
        return done.stdout

    try:
        with Watcher(source, state):
            assert len(holders(state)) == 1
        assert service() == "False []\n"
        assert not holders(state)
        assert systemd.store.keys() == {"rsyncfs-names", "rsyncfs-scratch"}
        (source / "one").touch()
        assert service() == "True [b'one']\n"
        (source / "two").touch()
        assert service() == "True [b'two']\n"
        (source / "three").touch()
        assert service(stored=False) == "False []\n"  # it had no room for them, or forgot them
        (source / "four").touch()
        assert service() == "True [b'four']\n"
    finally:
        systemd.close()


def test_a_systemd_that_does_not_listen_keeps_nothing(
    source: Path, state: Path, scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {"NOTIFY_SOCKET": str(scratch / "nobody")}
    for _ in range(2):
        with Watcher(source, state, environ=environ) as watcher:
            assert not watcher.adopted
            (source / "new").touch()
            (source / "new").unlink()
            assert watcher.told() == {b"new"}
    assert "the queue of name events will end with this process: [Errno 2] No such file or directory" in caplog.messages


def test_a_sender_that_is_killed_or_stopped_goes_on_where_it_was(source: Path, scratch: Path) -> None:
    replica = scratch / "replica"
    replica.mkdir()
    with Pair(source, replica, scratch / "state") as pair:
        assert pair.status()["hooks"] == {"adopted": False, "kept": True}
        for how in ("kill", "stop"):
            assert pair.sender is not None
            getattr(pair.sender, how)()
            hooks = programs(pair.send_state)
            assert hooks
            (source / f"new{len(list(source.iterdir()))}").write_bytes(os.urandom(10_000))
            pair.start_sender()
            assert programs(pair.send_state) == hooks
            assert pair.status()["hooks"]["adopted"]
            assert pair.metrics()["rsyncfs_hooks_adopted"] == 1
            assert pair.sender is not None
            assert "the hooks of the sender before are taken over" in pair.sender.text()
            pair.assert_same()
        done = rsyncfs("unhook", "--state", pair.send_state)
        assert done.returncode == 3
        assert done.stderr == (
            f"rsyncfs: a sender is running on {pair.send_state}, and its hooks are in use: stop it first, or start it "
            "with --detach-hooks\n"
        )
        assert programs(pair.send_state) == hooks
    assert not programs(pair.send_state)
    gone(hooks)


def test_a_sender_that_is_to_detach_its_hooks_does_when_it_is_stopped(source: Path, scratch: Path) -> None:
    replica = scratch / "replica"
    replica.mkdir()
    with Pair(source, replica, scratch / "state", send_options=["--detach-hooks"]) as pair:
        pair.kill_sender()
        hooks = programs(pair.send_state)
        assert hooks
        pair.start_sender()
        assert pair.status()["hooks"]["adopted"]
        assert pair.sender is not None
        pair.sender.stop()
        assert not programs(pair.send_state)
        assert not holders(pair.send_state)
        gone(hooks)
        pair.start_sender()


def test_a_sender_that_cannot_begin_leaves_nothing(source: Path, scratch: Path) -> None:
    state = scratch / "state"
    state.mkdir()
    (state / "control").mkdir()  # where its socket should be
    done = rsyncfs("send", source, "127.0.0.1:1", "--state", state)
    assert done.returncode != 0
    assert not holders(state)
    assert not (sets() / key_of(state)).exists()


def test_names_are_not_taken_over_without_the_hooks_that_they_belong_to(source: Path, state: Path) -> None:
    with Watcher(source, state):
        pass
    place = sets() / key_of(state)
    (place / "signature").unlink()
    (source / "new").touch()
    with Watcher(source, state) as watcher:
        assert watcher.names is not None
        assert not watcher.names.adopted
        assert watcher.told() == set()


def test_a_queue_of_other_events_is_not_taken_over(source: Path, state: Path, scratch: Path) -> None:
    store = HolderStore(state)
    with Watcher(source, scratch) as watcher:
        with Names(watcher.source, store=store):
            pass
        for modify, adopted in ((True, False), (True, True), (False, False)):
            with Names(watcher.source, modify=modify, store=store, adopt=True) as names:
                assert names.adopted == adopted
    unhook(scratch)


def test_a_mark_that_is_gone_is_not_taken_for_one(source: Path, state: Path, scratch: Path) -> None:
    store = HolderStore(state)
    with filesystem("ext4", scratch / "gone") as point:
        with Watcher(point, scratch) as watcher, Names(watcher.source, store=store):
            pass
        unhook(scratch)
        unmount(point)
        run("mount", "-o", "loop", scratch / "gone" / "image", point)
        with Watcher(point, scratch) as watcher, Names(watcher.source, store=store, adopt=True) as names:
            assert not names.adopted
        unhook(scratch)

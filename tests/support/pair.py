"""Both ends of a replication as the two processes a user would start.

Takes the source, the replica and a directory for state and logs; starts `rsyncfs receive` and `rsyncfs send` as the
command-line contract has them; gives the barrier, the metrics and the comparison. Promises that no process outlives
`stop` or `kill`. Knows nothing of how the product works inside. All limits are in seconds of an ordinary host
(tests/support/deadline.py). The environment variable RSYNCFS_TEST_SENSOR chooses the sensor.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from replicator.cli import app
from replicator.errors import EnvironmentFault, RsyncfsError
from tests.support import metrics
from tests.support.certificates import Tls
from tests.support.deadline import SLOW, eventually
from tests.support.namespaces import call_inside, inside
from tests.support.oracle import differences

COMMAND = [sys.executable, "-m", "replicator"]
READY_SECONDS = 60.0
"""For either end: compiling the programs on a busy machine, and an initial sync of a small tree."""
WAIT_SECONDS = 30.0
STOP_SECONDS = 15.0
PORTS_FROM = 10_000
SENSOR = os.environ.get("RSYNCFS_TEST_SENSOR", "auto")

started: list[Process] = []
"""Every process that the running test has started or found running, for a failure's report."""


def tidy() -> None:
    """Forget those that have ended, and unhook what senders among them left."""
    senders = {process: _state(process) for process in started if process.words[0] == "send"}
    in_use = {state for process, state in senders.items() if process.running()}
    for state in dict.fromkeys(senders.values()):
        if state not in in_use:
            unhook(state)
    started[:] = [process for process in started if process.running()]


def _state(process: Process) -> Path:
    return Path(process.words[process.words.index("--state") + 1])


def unhook(state: Path) -> None:
    """Remove what a sender that has ended left in the kernel."""
    code, said = _within("unhook", "--state", str(state))
    assert code == 0, f"`unhook`: {code} {said}"


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody had a moment ago, and that no connection is given of itself meanwhile."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = range(PORTS_FROM, first)
    for wanted in (*random.SystemRandom().sample(ports, min(100, len(ports))), 0):  # 0: any, if there are no such ports
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, wanted))
            port: int = probe.getsockname()[1]
            return port
    raise AssertionError(f"no port of {host} is free")


def environment() -> dict[str, str]:
    """What the product is started with: the caller's, the project importable, no buffering, crashes told."""
    project = Path(__file__).resolve().parents[2]
    paths = [str(project), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        "PYTHONFAULTHANDLER": "1",
    }


def rsyncfs(
    *words: str | Path, timeout: float = 60.0, prefix: Sequence[str] = (), cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one command of the product to its end; its exit code is the caller's to judge."""
    command = [*prefix, *COMMAND, *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout * SLOW, check=False, env=environment(), cwd=cwd
    )


def _within(*words: str) -> tuple[int, str]:
    """A command that is called too often for an interpreter each time: its exit code and what it said."""
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    code: object = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            app.main(list(words), prog_name="rsyncfs")
        except SystemExit as end:
            code = end.code
        except RsyncfsError as error:
            code = error.exit_code
            said.write(str(error))
    said.seek(0)
    return int(str(code or 0)), said.read()


class Process:
    """One end, running in the foreground; its stderr goes to `log`."""

    def __init__(self, words: Sequence[str], log: Path, netns: str | None = None, prefix: Sequence[str] = ()) -> None:
        self.log = log
        self.words = list(words)
        self._file = log.open("ab")
        self.process = subprocess.Popen(
            [*inside(netns), *prefix, *COMMAND, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._file,
            env=environment(),
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        started.append(self)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line.decode(errors="replace").strip())

    @property
    def pid(self) -> int:
        return self.process.pid

    def running(self) -> bool:
        return self.process.poll() is None

    def fate(self) -> str:
        """Whether it runs or how it ended, in words; a negative code is the signal that killed it."""
        code = self.process.poll()
        return "still running" if code is None else f"ended with {code}"

    def text(self, limit: int = 8000) -> str:
        """The end of what it has logged."""
        return self.log.read_text(errors="replace")[-limit:] if self.log.exists() else ""

    def ready(self, timeout: float = READY_SECONDS) -> None:
        """Wait for its line "ready"."""
        timeout *= SLOW
        deadline = time.monotonic() + timeout
        while "ready" not in self.lines:
            if not self.running():
                self._reader.join(1)
                if "ready" in self.lines:
                    return
                raise AssertionError(f"`{self.words[0]}` ended with {self.process.returncode}:\n{self.text()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"`{self.words[0]}` was not ready after {timeout:g} s:\n{self.text()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and what the contract says of it: a clean end with exit code 0 and no traceback in the log."""
        running = self.running()
        code = self._end(signal.SIGTERM)
        assert running, f"`{self.words[0]}` had ended by itself with {code}:\n{self.text()}"
        assert code == 0, f"`{self.words[0]}` ended with {code} on SIGTERM:\n{self.text()}"
        assert "Traceback" not in self.log.read_text(errors="replace"), self.text(20000)

    def exit_code(self, timeout: float = 30.0) -> int:
        """Wait until it ends by itself."""
        code = self.process.wait(timeout * SLOW)
        self._forget()
        return code

    def _end(self, how: signal.Signals) -> int:
        limit = STOP_SECONDS * SLOW
        if self.running():
            self.process.send_signal(how)
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"`{self.words[0]}` did not end within {limit:g} s:\n{self.text()}") from None
        finally:
            self._forget()

    def _forget(self) -> None:
        self._reader.join(2)
        self._file.close()


class Pair:
    """A sender and a receiver that belong together; a context manager that starts both and stops both."""

    def __init__(
        self,
        source: Path,
        replica: Path,
        state_dir: Path,
        exclude: Sequence[str] = (),
        tls: tuple[Tls, Tls] | None = None,
        host: str = "127.0.0.1",
        netns: tuple[str | None, str | None] = (None, None),
        adopt: bool = False,
        connect: str | None = None,
        send_options: Sequence[str] = (),
        receive_state: Path | None = None,
    ) -> None:
        """`tls` and `netns` are (sender's, receiver's); `connect` is HOST:PORT of a proxy in front of the receiver.

        `send_options` are given to the sender as they are; `receive_state` is below `state_dir` if it is not given.
        """
        self.source, self.replica, self.state_dir = source, replica, state_dir
        self.host, self.netns, self.tls, self.adopt = host, netns, tls, adopt
        self.exclude, self.send_options = list(exclude), list(send_options)
        self.port = free_port()
        self.connect = connect or f"{host}:{self.port}"
        self.send_state, self.receive_state = state_dir / "send", receive_state or state_dir / "receive"
        self.receive_prefix: list[str] = []
        """Words before the receiver's command."""
        self.metrics_address = {side: f"127.0.0.1:{free_port()}" for side in ("send", "receive")}
        self.sender: Process | None = None
        self.receiver: Process | None = None
        self._runs = 0

    def start(self) -> Self:
        """Start both and wait until both are ready; whatever goes wrong, neither is left behind."""
        try:
            self.start_receiver()
            self.start_sender()
        except BaseException:
            self.kill()
            raise
        return self

    def start_receiver(self, ready: bool = True) -> None:
        self.receive_state.mkdir(parents=True, exist_ok=True)
        words = ["receive", "--root", str(self.replica), "--listen", f"{self.host}:{self.port}"]
        words += ["--state", str(self.receive_state), "--metrics", self.metrics_address["receive"]]
        words += ["--adopt"] if self.adopt else []
        words += self.tls[1].options() if self.tls else []
        self.receiver = Process(words, self._log("receive"), self.netns[1], self.receive_prefix)
        if ready:
            self.receiver.ready()

    def start_sender(self, ready: bool = True) -> None:
        self.send_state.mkdir(parents=True, exist_ok=True)
        words = ["send", str(self.source), self.connect]
        words += ["--state", str(self.send_state), "--metrics", self.metrics_address["send"]]
        words += ["--sensor", SENSOR]
        words += self.send_options
        for pattern in self.exclude:
            words += ["--exclude", pattern]
        words += self.tls[0].options() if self.tls else []
        self.sender = Process(words, self._log("send"), self.netns[0])
        if ready:
            self.sender.ready()

    def _log(self, name: str) -> Path:
        self._runs += 1
        return self.state_dir / f"{name}.{self._runs}.log"

    def kill_receiver(self) -> None:
        """SIGKILL the receiver."""
        assert self.receiver is not None
        self.receiver.kill()

    def kill_sender(self) -> None:
        """SIGKILL the sender."""
        assert self.sender is not None
        self.sender.kill()

    def restart_receiver(self) -> None:
        """Start a receiver again with the same root, port and state."""
        self.start_receiver()

    def healthy(self) -> bool:
        """Whether both processes run."""
        return all(end is not None and end.running() for end in (self.sender, self.receiver))

    def wait(self, timeout: float = WAIT_SECONDS) -> None:
        """The product's barrier; AssertionError with its words if it is not reached in time.

        The command is called within this process: it is called a thousand times, and an interpreter takes ten times
        as long to start as the barrier takes. `try_wait` is the same as a process.
        """
        code, said = _within("wait", "--state", str(self.send_state), "--timeout", f"{timeout * SLOW:g}")
        if code != 0:
            if self.sender is not None and code == EnvironmentFault.exit_code:
                # It is ending: its last words are to be in its log.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.sender.process.wait(STOP_SECONDS * SLOW)
            raise AssertionError(f"`wait`: {code} {said}\n{self.status_text()}")

    def try_wait(self, timeout: float) -> tuple[int, str]:
        """The barrier as a process; its exit code and what it said."""
        done = rsyncfs("wait", "--state", self.send_state, "--timeout", f"{timeout:g}", timeout=timeout + 30)
        return done.returncode, done.stdout + done.stderr

    def status_text(self) -> str:
        """What `status` says, for a failure's report."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = rsyncfs("status", "--state", self.send_state, "--json", timeout=20)
            return done.stdout + done.stderr
        return "`status` did not answer"

    def assert_same(
        self, below: str | os.PathLike[str] = ".", timeout: float = WAIT_SECONDS, holes: bool = False
    ) -> None:
        """Wait, then compare the subtree with the oracle. Nobody may be writing to it."""
        self.wait(timeout)
        wrong = differences(self.source / below, self.replica / below, holes)
        assert not wrong, "source against replica:\n" + "\n".join(wrong)

    def metrics(self, side: str = "send") -> metrics.Samples:
        """The present samples of one side, `send` or `receive`."""
        space = self.netns[0 if side == "send" else 1]
        return call_inside(space, lambda: metrics.scrape(self.metrics_address[side]))

    def status(self) -> dict[str, Any]:
        """What `status --json` says, called within this process as `wait` is."""
        code, said = _within("status", "--state", str(self.send_state), "--json")
        assert code == 0, f"`status`: {code} {said}"
        answer: dict[str, Any] = json.loads(said)
        return answer

    def wire_bytes(self) -> int:
        """Bytes that the sender has put on the wire since it started, up to now; the metric may be a moment behind."""
        return int(self.status()["wire_bytes"]["sent"])

    def resyncs(self) -> int:
        """How often a rescan was asked for, whatever the cause."""
        return int(self.status()["resyncs"])

    def spent(self) -> tuple[int, int]:
        """Both at once: (`wire_bytes`, `resyncs`)."""
        status = self.status()
        return int(status["wire_bytes"]["sent"]), int(status["resyncs"])

    def connected(self) -> bool:
        """Whether the sender says that it has a connection."""
        return self.metrics().total("rsyncfs_connected") > 0

    def until_connected(self, timeout: float = 20.0) -> None:
        """Wait for the connection to be (back) there."""
        eventually(self.connected, timeout, "the sender connects")

    def stop(self) -> None:
        """Stop both cleanly, the sender first; AssertionError if either does not end as the contract says.

        Nothing stays in the kernel.
        """
        sender, receiver = self.sender, self.receiver
        self.sender = self.receiver = None
        try:
            if sender is not None:
                sender.stop()
        finally:
            try:
                self.unhook()
            finally:
                if receiver is not None:
                    receiver.stop()

    def unhook(self) -> None:
        """Remove what a sender that has ended left in the kernel."""
        unhook(self.send_state)

    def kill(self) -> None:
        """End both, asking nothing. Nothing stays in the kernel."""
        for end in (self.sender, self.receiver):
            if end is not None:
                with contextlib.suppress(AssertionError):
                    end.kill()
        self.sender = self.receiver = None
        self.unhook()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.stop()
        else:
            self.kill()

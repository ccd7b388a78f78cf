"""Two hosts on one machine, for benches: a source and a replica on an ext4 each, and a network between both ends.

`site` makes them: sparse images on loop devices, so that whoever replicates sees no writes of its own replica, as on
two hosts; and a network namespace in which only its loopback is up, whose counters say what travelled, whoever sent it.
`Replicator` is what is measured; `Rsyncfs` is ours, others are in peers.py. Needs root.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import orjson
from volumes import Volume, run

from replicator.observe.control import ask

COMMAND = [sys.executable, "-m", "replicator"]
PORT = 7419
TCP_IP = 14 + 20 + 32
"""Bytes of headers in a packet on loopback: Ethernet's, IP's, and TCP's with its time stamps."""
TICK = os.sysconf("SC_CLK_TCK")


class Site:
    """Directories `source` and `replica`, both empty at first, and a network namespace."""

    def __init__(self, base: Path, source: Volume, replica: Volume) -> None:
        self.base = base
        self.volumes = source, replica
        self.source, self.replica = source.point / "tree", replica.point / "tree"
        for tree in (self.source, self.replica):
            tree.mkdir()
        self._network = f"rsyncfs-bench-{os.getpid()}"

    def within(self, *command: str | Path) -> list[str]:
        """A command line that runs `command` in the network namespace."""
        return ["nsenter", f"--net=/run/netns/{self._network}", *map(str, command)]

    def open(self) -> None:
        run("ip", "netns", "add", self._network)
        run(*self.within("ip", "link", "set", "lo", "up"))

    def close(self) -> None:
        run("ip", "netns", "delete", self._network)

    def wire_bytes(self) -> int:
        """What TCP carried in both directions so far, without headers of packets."""
        text = subprocess.run(self.within("cat", "/proc/net/dev"), check=True, capture_output=True, text=True).stdout
        words = next(line for line in text.splitlines() if line.strip().startswith("lo:")).split(":")[1].split()
        return int(words[8]) - TCP_IP * int(words[9])


@contextmanager
def site(parent: Path, gib: int, files: int = 100_000) -> Iterator[Site]:
    """With room for `gib` GiB and so many files on each side; the images are sparse."""
    with tempfile.TemporaryDirectory(prefix="rsyncfs-bench-", dir=parent) as name:
        base = Path(name)
        volumes: list[Volume] = []
        try:
            for what in ("source", "replica"):
                (base / what).mkdir()
                volumes.append(Volume(base / what, files, size=(gib + 1) << 30))
            made = Site(base, *volumes)
            made.open()
            try:
                yield made
            finally:
                made.close()
        finally:
            for volume in volumes:
                volume.close()


def family(pid: int) -> list[int]:
    """A process and all that it has started and that is alive."""
    found, queue = [], [pid]
    while queue:
        found.append(queue.pop())
        for task in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                queue += map(int, task.read_text().split())
            except OSError:  # the task has ended
                continue
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, its children, and those of them that have ended."""
    total = 0
    for member in family(pid):
        try:
            words = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, words[11:15]))
    return total / TICK


def resident(pid: int) -> int:
    """Bytes that a process has in memory now."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


def peak_memory(pid: int) -> int:
    """The most bytes that a process and its living children had resident, each at its own time."""
    total = 0
    for member in family(pid):
        try:
            text = Path(f"/proc/{member}/status").read_text()
        except OSError:
            continue
        total += int((text.partition("VmHWM:")[2].split() or ["0"])[0]) * 1024
    return total


class Replicator(ABC):
    """Something that keeps a site's replica like its source. Started by `open`; `close` ends all its processes."""

    name: str
    settings: str
    """The best sensible ones, in words."""
    keeps: tuple[str, ...] = ("-aHAX",)
    """What of a tree it keeps, in options of rsync."""

    def __init__(self, where: Site) -> None:
        self.site = where
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        """"sender" and, if it is another process, "receiver"."""

    @abstractmethod
    def open(self) -> None:
        """Start it; returns when the source is being watched and the replica is the same as the source."""

    def settle(self, timeout: float = 600.0) -> None:
        """Return when the replica is the same as the source, by names, sizes and times, as rsync says."""
        deadline = time.monotonic() + timeout
        while differences(self.site.source, self.site.replica, *self.keeps):
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.name}: the replica is not the same after {timeout:.0f} s")
            time.sleep(0.05)

    def start(self, end: str, *command: str | Path, **more: Any) -> subprocess.Popen[bytes]:
        """Start a process in the site's network; its errors go to a log."""
        log = (self.site.base / f"{end}.log").open("ab")
        with log:
            process = subprocess.Popen(self.site.within(*command), stdout=more.pop("stdout", log), stderr=log, **more)
        self.processes[end] = process
        return process

    def cpu(self) -> dict[str, float]:
        """Processor seconds so far, by end."""
        return {end: cpu_seconds(process.pid) for end, process in self.processes.items()}

    def memory(self) -> dict[str, int]:
        """Peak resident bytes so far, by end."""
        return {end: peak_memory(process.pid) for end, process in self.processes.items()}

    def close(self) -> None:
        """End all processes."""
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self.processes.clear()

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Rsyncfs(Replicator):
    """Ours."""

    name = "rsyncfs"
    settings = "none: as it comes; no TLS, since both ends are on this host"

    def __init__(self, where: Site) -> None:
        super().__init__(where)
        self.states = Path(tempfile.mkdtemp(prefix="state-", dir=where.base))
        self.state = self.states / "sender"
        self.port = PORT
        self.ready_seconds = 0.0
        """From the start of the sender's process until it said `ready`."""

    def open(self) -> None:
        at = f"127.0.0.1:{self.port}"
        state = self.states / "receiver"
        self._ready("receiver", "receive", "--root", self.site.replica, "--listen", at, "--state", state, "--adopt")
        begun = time.monotonic()
        self._ready("sender", "send", self.site.source, at, "--state", self.state, "--detach-hooks")
        self.ready_seconds = time.monotonic() - begun

    def _ready(self, end: str, *words: str | Path) -> None:
        process = self.start(end, *COMMAND, *words, stdout=subprocess.PIPE)
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            log = (self.site.base / f"{end}.log").read_text()
            raise SystemExit(f"rsyncfs {words[0]} did not start:\n{log}")

    def settle(self, timeout: float = 600.0) -> None:
        """Until all is durable on the replica."""
        answer = list(ask(self.state, {"op": "wait"}, timeout))[-1]
        if "error" in answer:
            raise SystemExit(f"rsyncfs: not durable: {answer['error']}")

    def status(self) -> dict[str, Any]:
        """What the sender says of itself."""
        (answer,) = ask(self.state, {"op": "status"}, 60)
        return answer


def differences(source: Path, copy: Path, *options: str) -> list[str]:
    """What differs between two trees, as rsync says it; an error of its own counts."""
    words = ["rsync", "-n", "-i", "--delete", *(options or ("-aHAX", "--checksum")), f"{source}/", f"{copy}/"]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    return done.stdout.splitlines()


def compared(where: Site, *keeps: str) -> None:
    """Ends the process if the trees are not the same, to the last byte: no figure of such a replica counts."""
    found = differences(where.source, where.replica, *(keeps or Replicator.keeps), "--checksum")
    if found:
        raise SystemExit(f"the replica differs from the source: no figure of it counts: {found[:5]}")


def dumped(figures: dict[str, Any]) -> str:
    """JSON of some figures, for a process's standard output."""
    return orjson.dumps(figures).decode()

"""What replication over loopback achieves on this machine: lag, rates, bytes on the wire.

Takes a directory with room for both sides (/var/tmp if none is given); prints a table or a JSON object. It does not
promise that figures of different machines can be compared.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from socket import socket
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from replicator.observe.control import ask

COMMAND = [sys.executable, "-m", "replicator"]
PAGE = 4096
WRITES = 500
PAUSE = 0.01
LARGE = 256 << 20
FILES = 5000


class Ends:
    """A running pair with an empty source."""

    def __init__(self, directory: Path) -> None:
        self.source, self.replica = directory / "source", directory / "replica"
        self._state = directory / "send"
        self._log = (directory / "log").open("wb")
        self.source.mkdir()
        self.replica.mkdir()
        with closing(socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            at = f"127.0.0.1:{probe.getsockname()[1]}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start("receive", "--root", self.replica, "--listen", at, "--state", directory / "receive")
        self._start("send", self.source, at, "--state", self._state, "--detach-hooks")

    def _start(self, *words: str | Path) -> None:
        process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=self._log)
        self._processes.append(process)
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise SystemExit(f"rsyncfs {words[0]} did not start:\n{Path(self._log.name).read_text()}")

    def wait(self) -> None:
        """Until all is durable on the replica."""
        subprocess.run([*COMMAND, "wait", "--state", self._state, "--timeout", "300"], check=True)

    def status(self) -> dict[str, Any]:
        """What the sender says of itself."""
        (answer,) = ask(self._state, {"op": "status"}, 10)
        return answer

    def close(self) -> None:
        """End both."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(30)
            if process.stdout is not None:
                process.stdout.close()
        self._log.close()


@contextmanager
def ends(parent: Path) -> Iterator[Ends]:
    """A pair in a directory of its own, so that no measurement sees another's counters."""
    with tempfile.TemporaryDirectory(prefix="rsyncfs-bench-", dir=parent) as directory:
        pair = Ends(Path(directory))
        try:
            yield pair
        finally:
            pair.close()


def single_writes(parent: Path) -> dict[str, Any]:
    """The lag of writes that come one by one, milliseconds."""
    with ends(parent) as pair, (pair.source / "file").open("wb", buffering=0) as file:
        os.pwrite(file.fileno(), os.urandom(64 * PAGE), 0)
        pair.wait()
        for number in range(WRITES):
            os.pwrite(file.fileno(), os.urandom(PAGE), number % 64 * PAGE)
            time.sleep(PAUSE)
        pair.wait()
        status = pair.status()
        return {"lag_applied_ms": status["lag_applied_ms"], "lag_durable_ms": status["lag_durable_ms"]}


def large_file(parent: Path) -> dict[str, Any]:
    """One large file: bytes each second until durable, and the wire's cost of a small change in it."""
    block = os.urandom(1 << 20)
    with ends(parent) as pair, (pair.source / "file").open("wb", buffering=0) as file:
        begun = time.monotonic()
        for _ in range(LARGE >> 20):
            file.write(block)
        pair.wait()
        seconds = time.monotonic() - begun
        before = pair.status()["wire_bytes"]["sent"]
        os.pwrite(file.fileno(), os.urandom(PAGE), LARGE // 2)
        pair.wait()
        return {
            "large_file_bytes_per_second": LARGE / seconds,
            "wire_bytes_of_a_4096_byte_change": pair.status()["wire_bytes"]["sent"] - before,
        }


def small_files(parent: Path) -> dict[str, Any]:
    """Many small files: files each second until durable."""
    with ends(parent) as pair:
        content = os.urandom(PAGE)
        begun = time.monotonic()
        for number in range(FILES):
            directory = pair.source / f"{number % 50}"
            directory.mkdir(exist_ok=True)
            (directory / f"{number}").write_bytes(content)
        pair.wait()
        return {"small_files_per_second": FILES / (time.monotonic() - begun)}


def show(result: dict[str, Any]) -> None:
    """The result as a table."""
    table = Table("measured", "")
    for end in ("applied", "durable"):
        lag = result[f"lag_{end}_ms"]
        told = ", ".join(f"{name} {lag[name]:.2f}" for name in ("p50", "p99", "max"))
        table.add_row(f"lag of a 4 KiB write until {end}", f"{told} ms")
    table.add_row("one file of 256 MiB until durable", f"{result['large_file_bytes_per_second'] / 1e6:.0f} MB/s")
    table.add_row("on the wire for 4 KiB changed in it", f"{result['wire_bytes_of_a_4096_byte_change']} bytes")
    table.add_row(f"{FILES} files of 4 KiB until durable", f"{result['small_files_per_second']:.0f} files/s")
    Console().print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("/var/tmp"), help="where both sides are made")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("the bench needs root: run it with sudo")
    result: dict[str, Any] = {"cpus": os.cpu_count(), "kernel": os.uname().release}
    for measure in (single_writes, large_file, small_files):
        result |= measure(arguments.directory)
    if arguments.json:
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
    else:
        show(result)


if __name__ == "__main__":
    main()

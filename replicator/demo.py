"""`demo`: both ends on loopback, a mixed workload, live lag, and a verdict.

Takes a duration; starts `receive` and `send` as processes of their own in a temporary directory, drives edits, appends,
renames, a database and a mapping, shows what the sender says of itself, waits, verifies, and removes everything.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.live import Live
from rich.table import Table

from replicator.errors import EnvironmentFault, RsyncfsError
from replicator.keeper.hooks import unhook
from replicator.observe.control import ask

START = 60.0
"""Seconds that the two ends may take to be ready."""
PAUSE = 0.002
"""Seconds between two acts of the workload: a busy host, not a storm."""


class Workload:
    """Acts on a directory; counts the bytes that it writes."""

    def __init__(self, root: Path, seed: int = 1) -> None:
        self._root = root
        self._random = random.Random(seed)
        self.bytes_written = 0
        self.acts = 0
        for name in ("documents", "logs", "old"):
            (root / name).mkdir()
        (root / "large.bin").write_bytes(os.urandom(8 << 20))
        (root / "mapped.bin").write_bytes(bytes(1 << 20))
        self.bytes_written += 9 << 20
        self._database = sqlite3.connect(root / "orders.db", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT)")
        self._mapped = (root / "mapped.bin").open("r+b")
        self._mapping = mmap.mmap(self._mapped.fileno(), 0)

    def act(self) -> None:
        """One random act."""
        chosen = self._random.choice(
            (
                self._edit,
                self._append,
                self._append,
                self._overwrite,
                self._overwrite,
                self._rename,
                self._order,
                self._store,
            )
        )
        chosen()
        self.acts += 1

    def close(self) -> None:
        """Close the database and the mapping."""
        self._database.close()
        self._mapping.close()
        self._mapped.close()

    def _edit(self) -> None:
        """As editors do: a new file, synced, renamed over the old one."""
        path = self._root / "documents" / f"note-{self._random.randrange(20)}.txt"
        data = self._random.randbytes(self._random.randrange(200, 4000))
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self.bytes_written += len(data)

    def _append(self) -> None:
        line = self._random.randbytes(200)
        with (self._root / "logs" / f"service-{self._random.randrange(4)}.log").open("ab") as file:
            file.write(line)
        self.bytes_written += len(line)

    def _overwrite(self) -> None:
        with (self._root / "large.bin").open("r+b") as file:
            file.seek(self._random.randrange(2048) * 4096)
            file.write(self._random.randbytes(4096))
        self.bytes_written += 4096

    def _rename(self) -> None:
        """Rotate a log: the whole directory moves."""
        source = self._root / "old"
        target = self._root / f"archive-{self._random.randrange(3)}"
        (source / f"entry-{self._random.randrange(50)}").touch()
        if target.exists():
            shutil.rmtree(target)
        source.rename(target)
        source.mkdir()

    def _order(self) -> None:
        self._database.execute("INSERT INTO orders (item) VALUES (?)", ("x" * self._random.randrange(50, 500),))
        self.bytes_written += 4096

    def _store(self) -> None:
        at = self._random.randrange(256) * 4096
        self._mapping[at : at + 64] = self._random.randbytes(64)
        self.bytes_written += 64


class Demo:
    """One run."""

    def __init__(self, seconds: int, *, as_json: bool) -> None:
        self._seconds = seconds
        self._json = as_json
        self._console = Console()

    def run(self) -> int:
        """Returns the exit code: 0 if both sides are identical at the end. Whatever ends it, nothing is left behind."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        base = Path(tempfile.mkdtemp(prefix="rsyncfs-demo-", dir="/var/tmp"))
        try:
            source, replica = base / "source", base / "replica"
            source.mkdir()
            replica.mkdir()
            port = _free_port()
            with (
                _process(base, "receive", "--root", str(replica), "--listen", f"127.0.0.1:{port}"),
                _process(base, "send", str(source), f"127.0.0.1:{port}", "--detach-hooks"),
            ):
                return self._show(base, source)
        finally:
            unhook(base / "send")  # should the sender have ended otherwise
            shutil.rmtree(base, ignore_errors=True)

    def _show(self, base: Path, source: Path) -> int:
        state = base / "send"
        before = _status(state)
        if not self._json:
            self._console.print(f"replicating [bold]{source}[/bold] over loopback for {self._seconds} seconds")
        started = time.monotonic()
        with closing(Workload(source)) as workload:
            if self._json:
                self._drive(workload, started, lambda: None)
            else:
                with Live(
                    self._table(before, before, workload), console=self._console, auto_refresh=False, transient=True
                ) as live:
                    self._drive(
                        workload,
                        started,
                        lambda: live.update(self._table(_status(state), before, workload), refresh=True),
                    )
        list(ask(state, {"op": "wait"}, START))
        seconds = time.monotonic() - started
        status = _status(state)
        verdict = list(ask(state, {"op": "verify"}, START))[-1]
        if "error" in verdict:
            raise RsyncfsError(verdict["error"])
        summary = {
            "seconds": round(seconds, 3),
            "events": status["events"] - before["events"],
            "bytes_written": workload.bytes_written,
            "bytes_on_wire": status["wire_bytes"]["sent"] - before["wire_bytes"]["sent"],
            "lag_applied_ms": {key: round(value, 3) for key, value in status["lag_applied_ms"].items()},
            "lag_durable_ms": {key: round(value, 3) for key, value in status["lag_durable_ms"].items()},
            "identical": bool(verdict["identical"]),
        }
        if self._json:
            print(orjson.dumps(summary).decode())
        else:
            self._console.print(self._table(status, before, workload))
            counted = f"{verdict['files']} files and {verdict['bytes']} bytes"
            self._console.print(f"compared {counted} on both sides after {workload.acts} acts:")
            print("identical" if summary["identical"] else "DIFFERENT")
        return 0 if summary["identical"] else 1

    def _drive(self, workload: Workload, started: float, show: Any) -> None:
        shown = 0.0
        while (now := time.monotonic()) - started < self._seconds:
            workload.act()
            if now - shown > 0.5:
                shown = now
                show()
            time.sleep(PAUSE)

    def _table(self, status: dict[str, Any], before: dict[str, Any], workload: Workload) -> Table:
        table = Table(show_header=True, header_style="bold")
        for column in ("lag", "p50", "p99", "max"):
            table.add_column(column, justify="left" if column == "lag" else "right")
        for name, key in (("visible on the replica", "lag_applied_ms"), ("durable there", "lag_durable_ms")):
            table.add_row(name, *(f"{status[key][which]:.2f} ms" for which in ("p50", "p99", "max")))
        wire = status["wire_bytes"]["sent"] - before["wire_bytes"]["sent"]
        table.add_section()
        table.add_row("kernel events", f"{status['events'] - before['events']:,}")
        table.add_row("bytes written", f"{workload.bytes_written:,}")
        table.add_row("bytes on the wire", f"{wire:,}")
        table.add_row("dirty now", f"{status['dirty_bytes']:,}", f"{status['dirty_files']} files")
        return table


def _status(state: Path) -> dict[str, Any]:
    return next(iter(ask(state, {"op": "status"}, 10)))


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def _process(base: Path, command: str, *arguments: str) -> Iterator[None]:
    """One end, ready; ended at the end."""
    log = base / f"{command}.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "replicator", command, *arguments, "--state", str(base / command)],
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    try:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        deadline = time.monotonic() + START
        while (process.stdout.read() or b"").strip() != b"ready":
            if process.poll() is not None or time.monotonic() > deadline:
                words = log.read_text(errors="replace").strip().splitlines()
                raise EnvironmentFault(
                    f"rsyncfs {command} did not become ready: {words[-1] if words else 'no message'}"
                )
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

"""How many lines a second `rsyncfs trace` shows on this machine, and what it costs whoever writes.

Takes a directory on a filesystem that can be traced (/var/tmp if none is given); prints a table or a JSON object. The
writer, the tracer and the reader of its lines share the machine's processors. Ends by itself after a number of writes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from report import Bars, Report, arguments, parsed, publish
from rich.table import Table

COMMAND = [sys.executable, "-m", "replicator"]
MARK = b"#"
"""The name of the file that is written to: every line of it has one."""
WRITES = 500_000
LENGTH = 512
LIMIT = 60.0
"""Seconds after which a tracer that shows nothing is given up."""

WRITER = """
import os, sys, time
fd, data = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), bytes(int(sys.argv[3]))
begun = time.monotonic()
for number in range(int(sys.argv[2])):
    os.pwrite(fd, data, number % 1000 * len(data))
print(time.monotonic() - begun)
"""


class Lines:
    """Reads to the end, counts those of the storm, and notes when the last ones came."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.count = 0
        self.poked = threading.Event()
        self.last = 0.0
        self._stream = stream
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while data := os.read(self._stream.fileno(), 1 << 20):
            self.count += data.count(MARK)
            self.last = time.monotonic()
            self.poked.set()

    def end(self) -> None:
        """Wait for the end of the stream."""
        self._thread.join(LIMIT)


def write(path: Path, writes: int) -> float:
    """Writes of a process that ends, each second."""
    done = subprocess.run(
        [sys.executable, "-c", WRITER, path, str(writes), str(LENGTH)], capture_output=True, text=True, check=True
    )
    return writes / float(done.stdout)


def traced(directory: Path, writes: int, options: list[str]) -> dict[str, Any]:
    """One tracer, one storm of writes: lines a second from the storm's begin to its last line, and what is missing."""
    log = directory / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen([*COMMAND, "trace", directory, *options], stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        try:
            lines = Lines(process.stdout)
            deadline = time.monotonic() + LIMIT
            while not lines.poked.wait(0.1):
                (directory / "poke").write_bytes(b"poke")
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"rsyncfs trace did not start:\n{log.read_text()}")
            begun = time.monotonic()
            rate = write(directory / MARK.decode(), writes)
        finally:
            process.terminate()
            process.wait(LIMIT)
        lines.end()
        process.stdout.close()
    left_out = sum(map(int, re.findall(r"(?m)^rsyncfs: (\d+) ", log.read_text())))
    return {
        "writes_per_second": rate,
        "lines_per_second": lines.count / (lines.last - begun),
        "shown": lines.count,
        "left_out": left_out,
    }


def report(result: dict[str, Any]) -> Report:
    """What is told of it."""
    table = Table("", "writes/s", "lines shown/s", "shown", "left out")
    table.add_row("nobody traces", f"{result['untraced_writes_per_second']:.0f}", "", "", "")
    for form in ("text", "json"):
        told = result[form]
        rates = (f"{told[name]:.0f}" for name in ("writes_per_second", "lines_per_second"))
        table.add_row(f"traced as {form}", *rates, str(told["shown"]), str(told["left_out"]))
    rows = {
        f"traced as {form}": {
            "written": result[form]["writes_per_second"],
            "shown": result[form]["lines_per_second"],
        }
        for form in ("text", "json")
    }
    rows["nobody traces"] = {"written": result["untraced_writes_per_second"]}
    return Report("trace", result, [table], Bars("Writes, and lines of trace", "a second", rows))


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--writes", type=int, default=WRITES, help="how many, for each form of lines")
    options = parsed(parser)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="rsyncfs-bench-", dir=options.directory) as name:
        directory = Path(name)
        result["untraced_writes_per_second"] = write(directory / "file", options.writes)
        result["text"] = traced(directory, options.writes, [])
        result["json"] = traced(directory, options.writes, ["--json"])
    publish(report(result), options)


if __name__ == "__main__":
    main()

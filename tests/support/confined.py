"""An end of the replication as systemd would confine it, without systemd.

Takes the settings of the units in deploy/; gives a running process with their capabilities and, if asked, their view of
the filesystem. The units' filter of system calls is not imitated.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.deadline import eventually
from tests.support.pair import unhook

PROJECT = Path(__file__).resolve().parents[2]
SYSTEMD = PROJECT / "deploy/systemd"


def setting(end: str, name: str) -> str:
    """The value of a setting in a unit."""
    found = re.search(rf"(?m)^{name}=(.*)$", (SYSTEMD / f"rsyncfs-{end}@.service").read_text())
    assert found is not None, name
    return found[1]


@contextlib.contextmanager
def confined(end: str, log: Path, words: Sequence[str | Path], writable: Path | None = None) -> Iterator[None]:
    """A running, ready end with no more capabilities than its unit grants; if asked, on a root that is read-only."""
    granted = [name.removeprefix("CAP_").lower() for name in setting(end, "CapabilityBoundingSet").split()]
    command = [
        *("setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=" + ",+".join(["-all", *granted])),
        *(sys.executable, "-m", "replicator", end, *map(str, words)),
    ]
    environment = dict(os.environ)
    if writable is not None:
        # As ProtectSystem=strict, CacheDirectory and StateDirectory do it.
        environment["TMPDIR"] = str(writable)
        sandbox = f"""
            mkdir -p /var/cache/rsyncfs
            for kept in '{writable}' /var/cache/rsyncfs; do mount --bind "$kept" "$kept"; done
            mount -o remount,bind,ro /
            exec "$@"
        """
        command = ["unshare", "-m", "--propagation=slave", "bash", "-euc", sandbox, "bash", *command]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        eventually(lambda: "ready\n" in log.read_text() or process.poll() is not None, 60)
        assert process.poll() is None, log.read_text()
        yield
        process.terminate()
        assert process.wait(20) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        if end == "send":
            unhook(Path(words[words.index("--state") + 1]))

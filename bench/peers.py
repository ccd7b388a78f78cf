"""Other replicators as `Replicator`s, each with its best sensible settings for a small lag, in words in `settings`.

All of them go over TCP on the site's own loopback, as ours does: through an rsync daemon, or by their own protocol.
What they need comes from the distribution (`scripts/bootstrap bench`). Nothing of theirs outlives `close`.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import orjson
from ends import Replicator, Site

RSYNC_PORT: Final = 7420
UNISON_PORT: Final = 7421
SYNC_PORTS: Final = (7422, 7423)
START: Final = 60.0
"""Seconds that something may take to start."""


class RsyncDaemon(Replicator):
    """A daemon whose module `replica` is the site's replica: what a plain rsync is run against."""

    name = "rsync daemon"
    settings = "use chroot = no, and no look-ups"

    def open(self) -> None:
        config = self.site.base / "rsyncd.conf"
        config.write_text(
            "use chroot = no\nreverse lookup = no\nuid = root\ngid = root\n"
            f"[replica]\npath = {self.site.replica}\nread only = no\n"
        )
        words = (
            "rsync",
            "--daemon",
            "--no-detach",
            "--sockopts=TCP_NODELAY",
            f"--port={RSYNC_PORT}",
            "--address=127.0.0.1",
            f"--config={config}",
        )
        self.start("receiver", *words)
        self.await_port(RSYNC_PORT)

    def await_port(self, port: int) -> None:
        """Until something listens on that port of the site."""
        found = re.compile(rf":{port:04X} 0+:0000 0A")  # on whatever address
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            words = self.site.within("cat", "/proc/net/tcp", "/proc/net/tcp6")
            if found.search(subprocess.run(words, stdout=subprocess.PIPE, text=True).stdout):
                return
            time.sleep(0.02)
        raise SystemExit(f"nothing listens on port {port}: {self.name} did not start")


def target() -> str:
    """The daemon's module as rsync names it."""
    return f"rsync://127.0.0.1:{RSYNC_PORT}/replica/"


def rsync_to(where: Site, *options: str) -> None:
    """One run of `rsync -a --delete` from the source to the daemon."""
    words = where.within("rsync", "-a", "--delete", "--sockopts=TCP_NODELAY", *options, f"{where.source}/", target())
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


class Lsyncd(Replicator):
    """A watch for each directory, and rsync for what changed."""

    name = "lsyncd"
    settings = (
        'inotifyMode = "Modify", delay = 0, archive, no compression, the replica a local directory: over a daemon on '
        "loopback each change takes twice as long"
    )

    def open(self) -> None:
        config = self.site.base / "lsyncd.lua"
        log = self.site.base / "lsyncd.log"
        config.write_text(
            f'settings {{ nodaemon = true, inotifyMode = "Modify", logfile = "{log}", insist = true }}\n'
            f'sync {{ default.rsync, source = "{self.site.source}", target = "{self.site.replica}", delay = 0,\n'
            "  rsync = { archive = true, compress = false } }\n"
        )
        # Each rsync that it starts closes all descriptors that it could have.
        self.start("sender", "prlimit", "--nofile=4096", "lsyncd", "-log", "Normal", config)
        deadline = time.monotonic() + START
        while not (log.exists() and "Startup of" in log.read_text() and "finished" in log.read_text()):
            if time.monotonic() > deadline or self.processes["sender"].poll() is not None:
                raise SystemExit(f"lsyncd did not start: {(self.site.base / 'sender.log').read_text()}")
            time.sleep(0.02)
        self.settle()


class InotifyLoop(RsyncDaemon):
    """What people write themselves."""

    name = "inotifywait + rsync"
    settings = (
        "inotifywait -m on the whole tree, piped to a loop that reads all events that wait, then runs rsync -a "
        "--delete over its daemon: a loop around inotifywait without -m misses what changes while rsync runs"
    )
    SCRIPT = r"""
inotifywait -q -m -r -e modify,create,delete,move,attrib --format . "$1" | while read -r _; do
    while read -r -t 0.001 _; do :; done
    rsync -a --delete --sockopts=TCP_NODELAY "$1/" "$2"
done
"""

    def open(self) -> None:
        super().open()
        rsync_to(self.site)
        source = self.site.source
        self.start("sender", "bash", "-c", self.SCRIPT, "bash", source, target(), start_new_session=True)
        probe, copy = source / ".rsyncfs-bench-probe", self.site.replica / ".rsyncfs-bench-probe"
        deadline = time.monotonic() + START
        while not copy.exists():  # it is not said when all watches are there
            probe.touch()
            if time.monotonic() > deadline:
                raise SystemExit("the loop around inotifywait did not start")
            time.sleep(0.2)
        probe.unlink()
        self.settle()

    def close(self) -> None:
        process = self.processes.get("sender")
        if process is not None:
            try:
                os.killpg(process.pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
        super().close()


class Unison(RsyncDaemon):
    """Both sides scanned over and over; by a watch where the distribution has unison-fsmonitor."""

    name = "unison"
    keeps = ("-rlptgo", "--omit-dir-times")

    repeat = "watch" if shutil.which("unison-fsmonitor") else "1"
    settings = (
        f"-repeat {repeat} (watch where the distribution has unison-fsmonitor), -batch, the source preferred, owner, "
        "group and times kept, its own protocol on loopback"
    )

    def open(self) -> None:
        home = self.site.base / "unison"
        home.mkdir(exist_ok=True)
        there, here = ({**os.environ, "UNISON": str(home / end)} for end in ("there", "here"))
        self.start("receiver", "unison", "-socket", str(UNISON_PORT), env=there)
        self.await_port(UNISON_PORT)
        root = f"socket://127.0.0.1:{UNISON_PORT}/{self.site.replica}"
        options = ("-batch", "-auto", "-times", "-owner", "-group", "-confirmbigdel=false", "-ui", "text", "-dumbtty")
        force = ("-force", str(self.site.source), "-repeat", self.repeat)
        self.start("sender", "unison", self.site.source, root, *options, *force, env=here, stdin=subprocess.DEVNULL)
        self.settle()


class _Unix(http.client.HTTPConnection):
    """HTTP over a socket in the filesystem, since the site's loopback is not this process's."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


class Syncthing(Replicator):
    """One device that sends only, one that receives only."""

    name = "Syncthing"
    keeps = ("-rlpt", "--omit-dir-times", "--exclude=/.stfolder")
    settings = (
        "fsWatcherDelayS = 1, the least that this version takes (its own default is 10), one direct TCP address on "
        "loopback, no discovery, no relays, no compression, owner of files not kept (this version cannot)"
    )

    def open(self) -> None:
        ids = {}
        for end in ("sender", "receiver"):
            home = self.site.base / f"syncthing-{end}"
            subprocess.run(
                ["syncthing", "generate", f"--home={home}", "--no-default-folder"],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            said = subprocess.run(
                ["syncthing", f"--home={home}", "--device-id"], check=True, capture_output=True, text=True
            )
            ids[end] = said.stdout.split()[-1]
        for number, (end, tree) in enumerate((("receiver", self.site.replica), ("sender", self.site.source))):
            self._configure(end, tree, ids, SYNC_PORTS[number], SYNC_PORTS[1 - number])
            (tree / ".stfolder").mkdir(exist_ok=True)
            words = (
                "syncthing",
                "serve",
                f"--home={self.site.base / f'syncthing-{end}'}",
                "--no-browser",
                "--no-restart",
            )
            self.start(end, *words, env={**os.environ, "STNOUPGRADE": "1", "STNODEFAULTFOLDER": "1"})
        self._await()

    def _configure(self, end: str, tree: Path, ids: dict[str, str], port: int, other: int) -> None:
        devices = "".join(
            f'<device id="{id}" name="{name}" compression="never"><address>'
            f"{f'tcp://127.0.0.1:{other}' if name != end else 'dynamic'}</address></device>"
            for name, id in ids.items()
        )
        members = "".join(f'<device id="{id}"></device>' for id in ids.values())
        kind = "sendonly" if end == "sender" else "receiveonly"
        home = self.site.base / f"syncthing-{end}"
        (home / "config.xml").write_text(
            f'<configuration version="36"><folder id="tree" label="tree" path="{tree}" type="{kind}"'
            f' rescanIntervalS="3600" fsWatcherEnabled="true" fsWatcherDelayS="1" ignorePerms="false">{members}'
            f"<fsync>false</fsync></folder>{devices}"
            f'<gui enabled="true" tls="false"><address>{home}/socket</address><apikey>bench</apikey></gui><options>'
            f"<listenAddress>tcp://127.0.0.1:{port}</listenAddress><globalAnnounceEnabled>false</globalAnnounceEnabled>"
            "<localAnnounceEnabled>false</localAnnounceEnabled><relaysEnabled>false</relaysEnabled>"
            "<natEnabled>false</natEnabled><urAccepted>-1</urAccepted><autoUpgradeIntervalH>0</autoUpgradeIntervalH>"
            "<crashReportingEnabled>false</crashReportingEnabled><reconnectionIntervalS>1</reconnectionIntervalS>"
            "<startBrowser>false</startBrowser></options></configuration>"
        )

    def _ask(self, end: str, what: str) -> dict[str, Any]:
        connection = _Unix(self.site.base / f"syncthing-{end}" / "socket")
        try:
            connection.request("GET", what, headers={"X-API-Key": "bench"})
            answer: dict[str, Any] = orjson.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()

    def _await(self) -> None:
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            try:
                connected = any(
                    one["connected"] for one in self._ask("sender", "/rest/system/connections")["connections"].values()
                )
                states = [self._ask(end, "/rest/db/status?folder=tree") for end in ("sender", "receiver")]
            except (OSError, ValueError, KeyError, http.client.HTTPException):
                connected, states = False, []
            idle = [state["state"] == "idle" and not state["needTotalItems"] for state in states]
            if connected and idle and all(idle) and states[0]["globalBytes"] == states[1]["globalBytes"]:
                return
            time.sleep(0.1)
        raise SystemExit(f"Syncthing did not get in sync: {(self.site.base / 'sender.log').read_text()[-2000:]}")

    def close(self) -> None:
        super().close()
        for tree in (self.site.source, self.site.replica):
            shutil.rmtree(tree / ".stfolder", ignore_errors=True)
        for end in ("sender", "receiver"):
            shutil.rmtree(self.site.base / f"syncthing-{end}", ignore_errors=True)


PEERS: tuple[type[Replicator], ...] = (Lsyncd, InotifyLoop, Syncthing, Unison)

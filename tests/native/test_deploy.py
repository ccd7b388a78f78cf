"""What lies in deploy/ works: systemd takes the units, their privileges suffice, the manual's certificates connect."""

from __future__ import annotations

import contextlib
import os
import re
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from replicator.link.tls import TlsFiles, client_context, server_context
from tests.support.confined import PROJECT, SYSTEMD, confined, setting
from tests.support.deadline import eventually
from tests.support.pair import free_port

UNITS = ["rsyncfs-send@.service", "rsyncfs-receive@.service"]

# Units


def verify(directory: Path, unit: str, text: str) -> str:
    """What systemd-analyze has to say of a unit: nothing, if it is right. The command is the one of this checkout."""
    command = Path(sys.prefix) / "bin/rsyncfs"
    assert command.is_file(), f"{command} is missing: run make install"
    path = directory / unit
    path.write_text(text.replace("/opt/rsyncfs/.venv/bin/rsyncfs", str(command)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr + (f"exit code {done.returncode}" if done.returncode else "")


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_the_unit(tmp_path: Path, unit: str) -> None:
    assert verify(tmp_path, unit, (SYSTEMD / unit).read_text()) == ""


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_would_object_to_a_misspelt_unit(tmp_path: Path, unit: str) -> None:
    text = (SYSTEMD / unit).read_text().replace("StateDirectory=", "StateDirektory=")
    assert "StateDirektory" in verify(tmp_path, unit, text)


@pytest.mark.parametrize("end", ["send", "receive"])
def test_the_unit_uses_what_its_environment_file_sets(end: str) -> None:
    unit = (SYSTEMD / f"rsyncfs-{end}@.service").read_text()
    used = set(
        re.findall(r"\$\{?([A-Z_]+)\}?", next(line for line in unit.splitlines() if line.startswith("ExecStart=")))
    )
    given = set(re.findall(r"(?m)^([A-Z_]+)=", (SYSTEMD / f"{end}.env.example").read_text()))
    assert used <= given
    assert given - used == {"RSYNCFS_LOG", "RSYNCFS_LOG_LEVEL"}


@pytest.mark.parametrize("end", ["send", "receive"])
def test_the_command_has_the_options_that_unit_and_environment_file_give(end: str) -> None:
    given = "\n".join(
        line
        for path in (SYSTEMD / f"rsyncfs-{end}@.service", SYSTEMD / f"{end}.env.example")
        for line in path.read_text().splitlines()
        if line.startswith(("ExecStart=", "OPTIONS="))
    )
    options = set(re.findall(r"(?<= )--[a-z-]+|(?<==)--[a-z-]+", given))
    assert len(options) >= 5
    done = subprocess.run(
        [sys.executable, "-m", "replicator", end, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"},
    )
    assert options <= set(re.findall(r"--[a-z-]+", done.stdout))


def test_the_kernel_knows_the_settings_that_are_set() -> None:
    for line in (PROJECT / "deploy/sysctl.d/60-rsyncfs.conf").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition(" = ")
            assert Path("/proc/sys", name.replace(".", "/")).is_file()
            assert int(value) > 0


def test_the_privileges_of_the_units_suffice(scratch: Path) -> None:
    source, replica, states = (scratch / name for name in ("source", "replica", "states"))
    for directory in (source, replica, states):
        directory.mkdir()
    assert setting("send", "ProtectSystem") == "strict"
    assert setting("send", "Environment") == "TMPDIR=%C/rsyncfs"
    at = f"127.0.0.1:{free_port()}"
    with (
        confined(
            "receive", scratch / "receive.log", ["--root", replica, "--listen", at, "--state", states / "receive"]
        ),
        confined("send", scratch / "send.log", [source, at, "--state", states / "send"], writable=states),
    ):
        (source / "secret").write_text("text")
        os.setxattr(source / "secret", "trusted.note", b"noted")
        os.setxattr(source / "secret", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
        os.mknod(source / "null", 0o20600, os.makedev(1, 3))
        (source / "tool").write_text("text")
        os.chown(source / "tool", 1234, 1235)
        (source / "tool").chmod(0o4750)
        (source / "secret").chmod(0)
        (source / "directory").mkdir()
        os.link(source / "secret", source / "directory/other")
        subprocess.run(
            [sys.executable, "-m", "replicator", "wait", "--state", states / "send", "--timeout", "20"], check=True
        )
        assert (replica / "directory/other").read_text() == "text"
        assert (replica / "secret").stat().st_mode == 0o100000
        assert os.getxattr(replica / "secret", "trusted.note") == b"noted"
        assert os.getxattr(replica / "secret", "security.capability")[4:8] == bytes.fromhex("00200000")
        assert (replica / "null").stat().st_rdev == os.makedev(1, 3)
        tool = (replica / "tool").stat()
        assert (tool.st_mode, tool.st_uid, tool.st_gid) == (0o104750, 1234, 1235)


# Certificates


def test_the_certificates_of_the_manual_open_a_connection(tmp_path: Path) -> None:
    manual = (PROJECT / "deploy/README.md").read_text().partition("## Certificates")[2]
    commands = "".join(
        line.removeprefix("    ") + "\n"
        for line in manual.partition("## Prometheus")[0].splitlines()
        if line.startswith("    ")
    )
    assert commands.count("openssl") == 3
    subprocess.run(["bash", "-euc", commands], cwd=tmp_path, check=True, capture_output=True)
    files = TlsFiles(*(str(tmp_path / name) for name in ("host.crt", "host.key", "ca.crt")))
    sides = []
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides.append(server_context(files).wrap_bio(to_server, to_client, server_side=True))
    sides.append(client_context(files).wrap_bio(to_client, to_server, server_hostname="replica.example"))
    done: set[ssl.SSLObject] = set()

    def shaken() -> bool:
        for side in sides:
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
                done.add(side)
        return len(done) == 2

    eventually(shaken)
    assert sides[0].getpeercert()

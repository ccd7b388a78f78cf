"""A virtual machine with a distribution's kernel, emulated, on which tests run.

Takes a kernel that scripts/kernels unpacked, a directory of its own and the runs of pytest to be made in it
(tests/kernel/guest.sh); gives what they wrote there. It has no network, sees the host's files read-only but for that
directory, and ends by itself. Promises that qemu does not outlive `stop`, the time limit, or this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.outcome import Outcome, outcomes
from tests.kernel.record import FILESYSTEMS

PROJECT = Path(__file__).resolve().parents[2]
KERNELS = PROJECT / "build/kernels"
HELPERS = KERNELS / "helpers"
MEMORY = 3072
"""MiB: three processes, the compiler of eBPF programs, and the filesystems' images on a tmpfs."""
_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Kernel:
    """One that can be booted."""

    series: str
    release: str
    image: Path


def kernels() -> list[Kernel]:
    """What scripts/kernels has fetched, oldest first."""
    found = [path.parent for path in KERNELS.glob("[0-9]*/release")]
    found.sort(key=lambda place: [int(part) for part in place.name.split(".")])
    return [Kernel(at.name, (at / "release").read_text().strip(), (at / "vmlinuz").resolve()) for at in found]


@dataclass(frozen=True)
class Run:
    """One run of pytest in a guest."""

    name: str
    variables: dict[str, str]
    tests: Sequence[str]
    filesystems: Sequence[str] = FILESYSTEMS

    def line(self) -> str:
        """As guest.sh reads it; no word may have a space in it, nor may the project's path."""
        variables = [f"{key}={value}" for key, value in self.variables.items()]
        words = [*variables, "--", f"--filesystems={','.join(self.filesystems)}", *self.tests]
        return f"{self.name}: {' '.join(words)}"


def emulated(
    kernel: Kernel, shared: Path, script: str, memory: int, cpus: int = 1, devices: Sequence[str] = ()
) -> list[str]:
    """The command that boots a kernel and runs a shell's `script` in it; it ends when that does.

    The guest can write to `shared` alone of the host's files. `memory` is in MiB; `devices` are more words for qemu.
    """
    return [
        *(str(Path(sys.executable).with_name("virtme-run")), "--kimg", str(kernel.image), "--mods", "auto"),
        *("--qemu-bin", str(PROJECT / "tests/kernel/qemu.sh")),
        *("--disable-kvm", "--force-9p", "--memory", f"{memory}M", "--cpus", str(cpus), "--user", "root"),
        *(f"--overlay-rwdir={place}" for place in ("/etc", "/lib", "/usr", "/var", "/tmp")),
        *("--rwdir", str(shared), "--script-sh", script),
        # Every process of a guest pays for what its kernel does against leaks between programs, and within itself.
        *("--kopt", "mitigations=off", "--kopt", "init_on_alloc=0"),
        *("-q=-fsdev", "-q=local,id=whole,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-q=-device", "-q=virtio-9p-pci,fsdev=whole,mount_tag=whole"),
        *(f"-q={word}" for word in devices),
    ]


def die_with_parent() -> None:
    """To be called in a child: SIGKILL when the thread that made it ends."""
    _libc.prctl(_PDEATHSIG, signal.SIGKILL)


def _yield_to_others() -> None:
    """Take four fifths of what others of the same kind get."""
    os.nice(1)
    with contextlib.suppress(OSError):  # where each session has a share of its own, that is what counts
        Path("/proc/self/autogroup").write_text("1")


class Machine:
    """One boot of one kernel. OSError if virtme-ng or qemu is not there."""

    def __init__(
        self, kernel: Kernel, runs: Sequence[Run], limit: float, cpus: int = 1, *, yields: bool = False
    ) -> None:
        """`limit` is in seconds of this host, from `start`. `yields`: others of the same host go first."""
        self.kernel, self.runs, self._limit, self._cpus, self._yields = kernel, runs, limit, cpus, yields
        self.shared = KERNELS / "runs" / kernel.series
        self._process: subprocess.Popen[bytes] | None = None
        self._compiler: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self.fate = "not started"

    def start(self) -> None:
        """Boot. To be called in the thread that lives longest: the machine ends with it."""
        shutil.rmtree(self.shared, ignore_errors=True)
        self.shared.mkdir(parents=True)
        (self.shared / "runs").write_text("".join(f"{run.line()}\n" for run in self.runs))
        script = shlex.join(["bash", str(PROJECT / "tests/kernel/guest.sh"), str(PROJECT), str(self.shared)])
        command = emulated(self.kernel, self.shared, script, MEMORY, self._cpus)
        with (self.shared / "console.log").open("wb") as console:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(self.shared)},
                start_new_session=True,  # Ctrl-C is for those who wait, and they stop it
                preexec_fn=self._begin,
            )
        self._started = time.monotonic()
        self.fate = "running"

    def _begin(self) -> None:
        die_with_parent()
        if self._yields:
            _yield_to_others()

    def running(self) -> bool:
        """Whether it is; ends it if its time is over."""
        if self._process is None:
            return False
        code = self._process.poll()
        if code is not None:
            self.fate = f"ended with {code} after {time.monotonic() - self._started:.0f} s"
            self._process = None
        elif time.monotonic() - self._started > self._limit:
            self.stop()
            self.fate = f"did not end within {self._limit:.0f} s and was killed"
        elif self._compiler is None and (self.shared / "btf.done").exists():
            self._compile()
        return self._process is not None

    def _compile(self) -> None:
        """Make what the guest waits for (tests/kernel/compiling.py); if that fails, it says so and does it itself."""
        words = [sys.executable, "-m", "tests.kernel.compiling", self.kernel.release, str(self.shared)]
        with (self.shared / "compiling.log").open("wb") as log:
            self._compiler = subprocess.Popen(
                words, stdout=log, stderr=subprocess.STDOUT, cwd=PROJECT, preexec_fn=die_with_parent
            )

    def stop(self) -> None:
        """End it at once."""
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)  # the session that it was given, with qemu in it
            process.wait()
            self.fate = "was stopped"
        if self._compiler is not None:
            self._compiler.kill()
            self._compiler.wait()

    def code(self, run: str) -> int | None:
        """How that run of pytest ended; None if it has not."""
        path = self.shared / f"{run}.done"
        return int(path.read_text()) if path.exists() else None

    def outcomes(self, run: str) -> list[Outcome]:
        """What is known of its tests so far."""
        path = self.shared / f"{run}.jsonl"
        return list(outcomes(path.read_text())) if path.exists() else []

    def text(self, name: str, limit: int = 3000) -> str:
        """The end of a log in the shared directory."""
        path = self.shared / name
        return path.read_text(errors="replace")[-limit:] if path.exists() else ""

"""What people really run, each followed by a comparison of the trees."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Case, on
from tests.support.deadline import eventually
from tests.support.operations import content
from tests.support.pair import WAIT_SECONDS

pytestmark = [pytest.mark.native, on("ext4", "xfs", "btrfs")]

PATIENCE = 120.0
"""Seconds for a replica to take in what a workload made in a few: two processes share two cores with it."""


def run(*words: str | Path, cwd: Path | None = None) -> None:
    environment = {
        **os.environ,
        **{f"GIT_{who}_{what}": "tests@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }
    done = subprocess.run(words, capture_output=True, check=False, cwd=cwd, env=environment, timeout=120)
    assert done.returncode == 0, f"{words}: {done.stderr.decode(errors='replace')}"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with some history, outside every tree."""
    top = tmp_path_factory.mktemp("git") / "origin"
    top.mkdir()
    run("git", "init", "--quiet", "--initial-branch=main", ".", cwd=top)
    for round_number in range(15):
        for number in range(40):
            path = top / f"directory{number % 7}" / f"file{number}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content(1500, round_number * 1000 + number // (1 + round_number % 3)))
        run("git", "add", "--all", cwd=top)
        run("git", "commit", "--quiet", "--message", f"round {round_number}", cwd=top)
    return top


def test_git_clone_and_gc(case: Case, repository: Path) -> None:
    clone = case.source / "clone"
    run("git", "clone", "--quiet", "--no-hardlinks", repository, clone)
    case.assert_same(PATIENCE)
    run("git", "checkout", "--quiet", "HEAD~7", cwd=clone)
    case.assert_same(PATIENCE)
    run("git", "checkout", "--quiet", "-b", "side", cwd=clone)
    (clone / "new").write_bytes(content(100_000))
    run("git", "add", "--all", cwd=clone)
    run("git", "commit", "--quiet", "--message", "side", cwd=clone)
    run("git", "gc", "--quiet", "--aggressive", "--prune=now", cwd=clone)
    case.assert_same(PATIENCE)
    run("git", "fsck", "--strict", cwd=case.replica / "clone")


TRANSACTIONS = 1000


def _transactions(database: Path, over: threading.Event, counts: list[int]) -> None:
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
        connection.execute("PRAGMA synchronous=NORMAL")
        number = 0
        while not over.is_set():
            with connection:
                connection.execute("INSERT INTO t VALUES (?, ?)", (number, content(700, number)))
                connection.execute("UPDATE t SET v = ? WHERE k = ?", (content(300, number), number // 2))
                connection.execute("DELETE FROM t WHERE k = ?", (number // 3,))
            number += 1
            if number % 500 == 0:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            counts[0] = number


def test_sqlite_in_wal_mode_under_load(case: Case) -> None:
    """Its -shm file is written through a mapping; compared while the database is still open."""
    database = case.source / "data.db"
    with contextlib.closing(sqlite3.connect(database)) as keeper:
        keeper.execute("PRAGMA journal_mode=WAL")
        keeper.execute("CREATE TABLE t (k INTEGER, v BLOB)")
        keeper.commit()
        over, counts = threading.Event(), [0]
        writer = threading.Thread(target=_transactions, args=(database, over, counts))
        writer.start()
        try:
            for _ in range(3):
                case.pair.wait()  # under load
            eventually(lambda: counts[0] >= TRANSACTIONS, 60, "the transactions")
        finally:
            over.set()
            writer.join(60)
        case.assert_same(PATIENCE)
    case.assert_same(PATIENCE)
    with contextlib.closing(sqlite3.connect(f"file:{case.replica}/data.db?immutable=1", uri=True)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar file of 20,000 small files."""
    top = tmp_path_factory.mktemp("tar")
    script = f"""
import io, random, tarfile
source = random.Random(1)
with tarfile.open({str(top / "many.tar")!r}, "w") as out:
    for number in range(20_000):
        member = tarfile.TarInfo(f"many/{{number % 200}}/{{number}}")
        data = source.randbytes(source.randrange(2000))
        member.size, member.mtime, member.mode, member.uid = len(data), number, 0o640, number % 5
        out.addfile(member, io.BytesIO(data))
"""
    run(sys.executable, "-c", script)
    return top / "many.tar"


@pytest.mark.slow
def test_tar_of_twenty_thousand_files(case: Case, archive: Path) -> None:
    run("tar", "--extract", "--file", archive, cwd=case.source)
    case.assert_same(PATIENCE)


@pytest.mark.parametrize("engine", ["psync", "io_uring", "libaio", "mmap"])
def test_fio(case: Case, engine: str) -> None:
    direct = "1" if engine == "libaio" else "0"
    run(
        *("fio", "--name=job", f"--directory={case.source}", f"--ioengine={engine}", f"--direct={direct}"),
        *("--rw=randwrite", "--bsrange=512-64k" if direct == "0" else "--bsrange=4k-64k", "--bs_unaligned=0"),
        *("--size=48m", "--io_size=48m", "--numjobs=2", "--iodepth=8", "--randseed=7", "--allow_file_create=1"),
        *("--time_based=1", "--runtime=3", "--rate=64m", "--fallocate=none", "--minimal"),
    )
    case.assert_same(PATIENCE)


STRESSORS = (
    *("chmod", "chown", "copy-file", "dentry", "dir", "dirdeep", "fallocate", "filename", "fpunch", "hdd", "iomix"),
    *("link", "rename", "seek", "symlink", "utime", "xattr", "touch", "aiol", "msync"),
)
GROUP = 5
"""Stressors that run side by side."""
SEEN = 20_000
"""Events of theirs that the sender must have seen before they are frozen."""


@contextlib.contextmanager
def stress(directory: Path, names: tuple[str, ...], seconds: int) -> Iterator[subprocess.Popen[bytes]]:
    """stress-ng in a process group of its own; it ends by itself after `seconds` at the latest."""
    words = ["stress-ng", "--temp-path", str(directory), "--timeout", f"{seconds}s", "--quiet", "--oom-avoid"]
    for name in names:
        words += [f"--{name}", "1"]
    words += ["--hdd-bytes", "8m"] if "hdd" in names else []
    words += ["--fallocate-bytes", "16m"] if "fallocate" in names else []
    words += ["--msync-bytes", "4m"] if "msync" in names else []
    words += ["--iomix-bytes", "16m"] if "iomix" in names else []
    process = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        for number in (signal.SIGCONT, signal.SIGINT):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def states(group: int) -> set[str]:
    """The scheduler's states of all threads of a process group; those that have ended do not count."""
    found = set()
    for task in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = task.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in "ZX":
                found.add(fields[0])
    return found


def _has_seen(case: Case, events: int) -> bool:
    return bool(case.pair.status()["events"] >= events)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("names", [STRESSORS[i : i + GROUP] for i in range(0, len(STRESSORS), GROUP)], ids="-".join)
def test_stress_ng(case: Case, names: tuple[str, ...]) -> None:
    """Frozen in the middle of it, twice, and compared; then once more when it has cleaned up after itself."""
    with stress(case.source, names, 60) as process:
        for _ in range(2):
            enough = case.pair.status()["events"] + SEEN
            eventually(partial(_has_seen, case, enough), 30, "they work on the source")
            assert process.poll() is None, process.returncode
            os.killpg(process.pid, signal.SIGSTOP)
            eventually(lambda: states(process.pid) <= {"T"}, 30, "every stressor is frozen")
            case.assert_same(PATIENCE)
            os.killpg(process.pid, signal.SIGCONT)
    case.assert_same(PATIENCE + WAIT_SECONDS)

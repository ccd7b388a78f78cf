"""The sensor as a whole: wake-ups, loss, what it covers, and how it refuses."""

from __future__ import annotations

import mmap
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from replicator.capture import bpf_sensor, direct
from replicator.capture.btf import Types
from replicator.capture.compile import kernel_types
from replicator.capture.event import EventKind
from replicator.capture.probe import examine, limits
from replicator.capture.remembered import RememberedTypes
from replicator.capture.sensor import Filesystem
from replicator.capture.tracepoint import FAMILIES, MODIFY, TracepointSensor
from replicator.errors import EnvironmentFault
from replicator.resources import ebpf_directory
from tests.native.traced import Records, Traced, kernel_dev, traced
from tests.support.deadline import eventually
from tests.support.filesystems import filesystem, run
from tests.support.helpers import call

pytestmark = pytest.mark.native


def test_a_lone_event_wakes_the_reader_each_time(tmp_path: Path) -> None:
    with traced("ext4", tmp_path / "fs") as place, place.file(b"x" * 4096) as fd:
        go, rounds = threading.Semaphore(0), 300

        def write() -> None:
            for _ in range(rounds):
                go.acquire()
                os.pwrite(fd, b"y", 0)

        writer = threading.Thread(target=write)
        waiter = select.epoll()
        waiter.register(place.sensor.fileno(), select.EPOLLIN)
        writer.start()
        try:
            for turn in range(rounds):
                go.release()
                seen = 0
                while not seen:
                    assert waiter.poll(5), f"no wake-up in round {turn}"
                    while (events := place.sensor.drain(100)) is not None:
                        seen += int(np.count_nonzero(events["kind"] == EventKind.WRITE))
                        place.sensor.advance()
        finally:
            for _ in range(rounds):
                go.release()
            writer.join()
            waiter.close()


def test_a_reader_that_keeps_up_with_a_storm_misses_nothing(tmp_path: Path) -> None:
    with traced("xfs", tmp_path / "fs", ring_bytes=1 << 16) as place, place.file() as fd:
        count = 20_000
        offsets: list[np.ndarray] = []
        done = threading.Event()

        def write() -> None:
            for index in range(count):
                # the ring holds 900 records: the reader is given time to keep up
                while place.sensor.produced() - place.sensor.consumed() > 1 << 15:
                    time.sleep(0)
                os.pwrite(fd, b"y", index * 3)
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not done.is_set() or place.sensor.consumed() < place.sensor.produced():
            events = place.sensor.drain(500)
            if events is None:
                select.select([place.sensor.fileno()], [], [], 0.05)
                continue
            offsets.append(events["off"][events["kind"] == EventKind.WRITE].copy())
            place.sensor.advance()
        writer.join()
        assert not any(place.sensor.losses().values())
        assert np.concatenate(offsets).tolist() == [index * 3 for index in range(count)]


def test_what_does_not_fit_is_counted_and_named(tmp_path: Path) -> None:
    with traced("ext4", tmp_path / "fs", ring_bytes=4096) as place:
        with place.file() as fd, place.file() as other:
            for index in range(200):
                os.pwrite(fd, b"y", index)
            os.pwrite(other, b"y", 0)
            losses = place.sensor.losses()
            assert losses["ring_full"] >= 200 + 1 - 4096 // 72
            assert losses["lost_map_full"] == 0
            lost = place.sensor.lost_inodes()
            assert {item.ino for item in lost} == {os.fstat(fd).st_ino, os.fstat(other).st_ino}
            assert all(item.fs == 0 and item.root == 0 and item.gen for item in lost)
            assert place.sensor.lost_inodes() == lost
            place.sensor.forget_lost(lost[:1])
            assert place.sensor.lost_inodes() == lost[1:]
            place.sensor.forget_lost(lost)
            assert place.sensor.lost_inodes() == []
            assert place.sensor.losses() == losses
            while place.sensor.drain(1000) is not None:
                place.sensor.advance()
            os.pwrite(fd, b"y", 7)
            events = place.sensor.drain(1000)
            assert events is not None
            assert 7 in events["off"].tolist()


def test_an_inode_that_loses_more_after_it_was_forgotten_is_named_again(tmp_path: Path) -> None:
    with traced("ext4", tmp_path / "fs", ring_bytes=4096) as place, place.file() as fd:
        for _ in range(2):
            before = place.sensor.losses()["ring_full"]
            for index in range(100):
                os.pwrite(fd, b"y", index)
            assert place.sensor.losses()["ring_full"] > before
            lost = place.sensor.lost_inodes()
            assert {item.ino for item in lost} == {os.fstat(fd).st_ino}
            place.sensor.forget_lost(lost)


def test_more_lost_inodes_than_can_be_kept_are_counted(tmp_path: Path) -> None:
    with traced("ext4", tmp_path / "fs", ring_bytes=4096, lost_inodes=4) as place:
        for index in range(300):
            (place.root / str(index)).write_bytes(b"x")
        losses = place.sensor.losses()
        assert losses["lost_map_full"] > 0
        assert losses["ring_full"] >= losses["lost_map_full"]
        assert place.sensor.lost_inodes()


def test_two_sensors_do_not_disturb_one_another(tmp_path: Path) -> None:
    with traced("ext4", tmp_path / "fs") as place:
        second = TracepointSensor(1 << 16)
        try:
            second.attach(Filesystem("ext4", kernel_dev(place.root)))
            with place.file() as fd:
                other = Traced("ext4", place.root, second)
                other.drain()
                os.pwrite(fd, b"y" * 10, 5)
                assert place.records(fd).touched == [(5, 15)]
                assert other.records(fd).touched == [(5, 15)]
        finally:
            second.close()
        with place.file() as fd:
            os.pwrite(fd, b"y" * 10, 5)
            assert place.records(fd).touched == [(5, 15)]


def test_closing_frees_everything(tmp_path: Path) -> None:
    with filesystem("ext4", tmp_path / "fs") as point:
        device = kernel_dev(point)
        warm = TracepointSensor(1 << 16)
        warm.attach(Filesystem("ext4", device))
        warm.close()
        before = set(os.listdir("/proc/self/fd"))
        sensor = TracepointSensor(1 << 16)
        sensor.attach(Filesystem("ext4", device))
        assert len(os.listdir("/proc/self/fd")) > len(before)
        sensor.close()
        sensor.close()
        assert len(os.listdir("/proc/self/fd")) == len(before)
        assert "bpf_ringbuf" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_this_kernel_has_every_hook(tmp_path: Path, fstype: str) -> None:
    with traced(fstype, tmp_path / "fs") as place:
        coverage = place.sensor.coverage()
        assert [item for item in coverage if not item.covered] == []
        assert {item.family for item in coverage} == set(FAMILIES[fstype])


def test_a_missing_hook_is_reported_and_does_not_fail_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RememberedTypes.tracepoint

    def lacking(self: RememberedTypes, name: str) -> tuple[str, ...] | None:
        if name == "ext4_punch_hole":
            return None
        if name == "ext4_zero_range":
            return ("struct inode *", "int")
        return real(self, name)

    monkeypatch.setattr(RememberedTypes, "tracepoint", lacking)
    with traced("ext4", tmp_path / "fs") as place, place.file() as fd:
        missing = {item.mechanism: item.reason for item in place.sensor.coverage() if not item.covered}
        assert missing.keys() == {"raw tracepoint ext4_punch_hole", "raw tracepoint ext4_zero_range"}
        assert missing["raw tracepoint ext4_punch_hole"] == "this kernel has no such tracepoint"
        assert "this kernel passes (struct inode *, int)" in missing["raw tracepoint ext4_zero_range"]
        os.pwrite(fd, b"y" * 10, 5)
        assert place.records(fd).touched == [(5, 15)]


def lacking(monkeypatch: pytest.MonkeyPatch, *tracepoints: str) -> None:
    """Make the kernel's types look as if these were not there."""
    real = RememberedTypes.tracepoint
    monkeypatch.setattr(
        RememberedTypes, "tracepoint", lambda self, name: None if name in tracepoints else real(self, name)
    )


CTIME = ("inode_set_ctime_to_ts", "ctime_ns_xchg", "ctime_xchg_skip")


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_where_ctime_is_silent_other_hooks_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fstype: str
) -> None:
    lacking(monkeypatch, *CTIME)
    with traced(fstype, tmp_path / "fs") as place, place.file(b"x" * 10_000) as fd:
        assert [item for item in place.sensor.coverage() if not item.covered or item.mechanism == MODIFY] == []
        for change in (lambda: os.fchmod(fd, 0o600), lambda: os.ftruncate(fd, 50_000)):
            change()
            records = place.records(fd)
            assert EventKind.ATTR in records.kinds, records
            assert not records.touched
        os.ftruncate(fd, 3000)
        assert place.records(fd).lowest == 3000


def test_where_btrfs_has_no_hook_for_attributes_fanotify_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking(monkeypatch, *CTIME)
    with traced("btrfs", tmp_path / "fs") as place, place.file(b"x" * 10_000) as fd:
        coverage = place.sensor.coverage()
        assert [item.mechanism for item in coverage if item.family == "inode"] == [MODIFY]
        assert [item for item in coverage if not item.covered] == []
        os.ftruncate(fd, 3000)
        os.ftruncate(fd, 9000)
        assert place.records(fd).lowest == 3000


def test_where_tmpfs_is_seen_in_part_the_missing_hooks_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking(monkeypatch, *CTIME)
    with traced("tmpfs", tmp_path / "fs") as place, place.file() as fd:
        coverage = place.sensor.coverage()
        assert {f"raw tracepoint {name}" for name in CTIME} <= {
            item.mechanism for item in coverage if not item.covered and item.family == "inode"
        }
        assert any("how short" in limit for limit in limits("tmpfs", coverage))
        os.pwrite(fd, b"y" * 10, 5)
        assert Records(place.drain()).touched == [(5, 15)]


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_where_direct_writes_pass_no_tracepoint_their_end_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fstype: str
) -> None:
    lacking(monkeypatch, "iomap_dio_rw_begin", "iomap_dio_complete")
    with traced(fstype, tmp_path / "fs") as place, mmap.mmap(-1, 8192) as aligned:
        assert [item for item in place.sensor.coverage() if not item.covered] == []
        if fstype == "btrfs":  # which buffers direct writes of files with checksums
            run("chattr", "+C", place.root)
        file = place.path()
        file.write_bytes(b"x" * 65_536)
        run("sync", file)
        fd = os.open(file, os.O_RDWR | os.O_DIRECT)
        try:
            place.drain()
            for offset in (16_384, 65_536):
                assert os.pwritev(fd, [aligned], offset) == 8192
                assert place.records(fd).touched == [(offset, offset + 8192)]
            call("aio_write", file, "direct", 32_768, 8192, 1)
            assert place.records(fd).touched == [(32_768, 40_960)]
            assert os.preadv(fd, [aligned], 0) == 8192
            assert place.records(fd).touched == []
        finally:
            os.close(fd)


def test_a_missing_member_leaves_out_its_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RememberedTypes.member

    def lacking(self: RememberedTypes, type_name: str, member: str) -> object:
        return None if (type_name, member) == ("inode", "i_blkbits") else real(self, type_name, member)

    monkeypatch.setattr(RememberedTypes, "member", lacking)
    with (
        filesystem("ext4", tmp_path / "fs") as point,
        pytest.raises(EnvironmentFault, match=r"none of the ext4 tracepoints .*inode\.i_blkbits"),
    ):
        TracepointSensor(1 << 16).attach(Filesystem("ext4", kernel_dev(point)))


def test_an_unknown_filesystem_is_refused() -> None:
    with pytest.raises(EnvironmentFault, match=r"vfat cannot be traced .* btrfs, ext4, tmpfs, xfs"):
        TracepointSensor().attach(Filesystem("vfat", 0))


ATTACH = """
from replicator.capture.sensor import Filesystem
from replicator.capture.tracepoint import TracepointSensor
from replicator.errors import EnvironmentFault
from replicator.resources import ebpf_directory
try:
    TracepointSensor().attach(Filesystem("ext4", 1))
except EnvironmentFault as fault:
    print(fault)
"""


def test_root_without_capabilities_is_told_so() -> None:
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", ATTACH],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.startswith("the kernel refuses eBPF to this process although it is root"), done
    assert done.stderr == ""


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(EnvironmentFault, match="needs root"):
        TracepointSensor().attach(Filesystem("ext4", 1))


def test_a_process_without_stderr_can_attach() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import os; os.close(2)" + ATTACH + "print('attached')"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == "attached\n"


def test_sources_that_do_not_compile_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "ebpf"
    shutil.copytree(ebpf_directory(), sources)
    with (sources / "ext4.c").open("a") as file:
        file.write("int broken(void) { return no_such_thing; }\n")
    monkeypatch.setattr("replicator.capture.source.ebpf_directory", lambda: sources)
    with pytest.raises(EnvironmentFault, match=r"cannot be compiled for this kernel \(ext4\.c:\d+:.* 'no_such_thing'"):
        TracepointSensor().attach(Filesystem("ext4", 1))


def test_a_kernel_without_types_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("replicator.capture.compile.BTF_DIRECTORY", tmp_path)
    with pytest.raises(EnvironmentFault, match="CONFIG_DEBUG_INFO_BTF"):
        TracepointSensor().attach(Filesystem("ext4", 1))


def test_the_offer_of_this_kernel() -> None:
    offer = examine()
    found = {item.name: item for item in offer.findings}
    assert all(item.available for item in offer.findings if item.required)
    assert found.keys() >= {"root", "bpf", "btf", "bcc", "fanotify", "kprobes", "trampolines"}
    assert offer.sensor == "tracepoint"
    support = {item.fstype: item for item in offer.filesystems}
    assert support.keys() == {"ext4", "xfs", "btrfs", "tmpfs"}
    assert all(item.usable for item in support.values())
    assert support["tmpfs"].limits
    assert not support["ext4"].limits


def test_records_of_a_killed_writer_are_all_there(tmp_path: Path) -> None:
    with traced("ext4", tmp_path / "fs", ring_bytes=1 << 23) as place, place.file() as fd:
        # No more than the ring holds, however late it is killed: then it waits for that.
        load = "import os, signal\nfor n in range(30_000): os.pwrite(0, b'y', n)\nsignal.pause()"
        child = subprocess.Popen([sys.executable, "-c", load], stdin=fd)
        try:
            eventually(lambda: os.fstat(fd).st_size > 100, what="the child's writes")
        finally:
            child.kill()
            child.wait()
        records = place.records(fd)
        assert records.covers(0, os.fstat(fd).st_size), records


def test_programs_that_the_verifier_refuses_with_loads_are_loaded_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(types: Types) -> direct.Cast | None:
        cast = direct.described(types)
        return None if cast is None else cast._replace(type=1)  # a number, no struct

    if direct.offered(kernel_types()) is None:
        pytest.skip("this kernel has no bpf_rdonly_cast")
    monkeypatch.setattr(bpf_sensor, "offered", mistaken)
    with traced("ext4", tmp_path / "fs") as place, place.file(b"x" * 4096) as fd:
        assert all(hook.covered for hook in place.sensor.coverage())
        os.pwrite(fd, b"y", 7)
        assert place.records(fd).covers(7, 1)

"""How many of the kernel's records are decoded and merged in a second of processor time, beside BCC's own reader.

Takes a directory with room for a sparse image (/var/tmp if none is given). A process writes 512 bytes at a time to an
ext4 of its own, with the hooks of the tracepoint sensor, and with a program that BCC loads, which tells the same writes
in records of the same 64 bytes. Each ring then holds what was told, and is read over and over, by turns:

    ours          `drain` and `advance` of the ring, and `merge` into a new dirty table, as the sender does
    with journal  the same, and the journal's append in between (checksum and write(2); nothing is synced)
    BCC, empty    BCC's ring buffer with a callback that only returns 0 (after None BCC handles an exception, each time)
    BCC           with one that takes the event from `event(data)`, and adds its range to the inode's RangeSet in a dict

What counts is the processor time of the reading thread; medians of the turns. The sensor's ring also holds records of
attributes, which are counted as what they are, records; BCC's only those of writes. Each turn must have taken all
records, and the last one's ranges must be those that were written: exactly, or, of a file with more than a set takes,
all of them and none beyond the outermost. Batches are as large as they can be (`--limit`): a sender that keeps up has
smaller ones, and spends more on each record.
"""

from __future__ import annotations

import gc
import mmap
import os
import resource
import shutil
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from report import Bars, Report, arguments, parsed, publish
from rich.table import Table
from volumes import Volume

from replicator.capture import layout
from replicator.capture.bpf_sensor import RING_BYTES
from replicator.capture.compile import kernel_types
from replicator.capture.headers import header_tree
from replicator.capture.ring import STRIDE, Ring
from replicator.capture.tracepoint import TracepointSensor
from replicator.dirty.generations import Generations
from replicator.dirty.merge import merge
from replicator.dirty.outsiders import MappedOutsiders
from replicator.dirty.ranges import DEFAULT_LIMIT, RangeSet
from replicator.dirty.table import DirtyTable
from replicator.dirty.writers import Writers
from replicator.errors import RsyncfsError
from replicator.journal.journal import Journal
from replicator.model import FileId, Kind, Slot
from replicator.resources import ebpf_directory, load_bcc
from replicator.tree.handles import SourceRoot
from replicator.tree.index import TreeIndex

BYTES = 512
SPREAD = 1 << 30
"""Bytes that the files of one workload have together."""
RECORDS = 200_000
"""In the ring when it is read; it has room for some more."""
LIMIT = 1 << 16
"""Records that the sender drains at once."""
TARGET = 8e6
TIMES_BCC = 20
OURS, JOURNAL, EMPTY, BCC = "ours", "with journal", "BCC, empty", "BCC"

PROGRAM = """
struct told {
	u64 ts; u64 ino; u64 off; u64 len; u64 root; u64 cgroup;
	u32 gen; u32 pid; u8 kind; u8 fs; u16 flags; u32 epoch;
};
BPF_RINGBUF_OUTPUT(ring, PAGES);

RAW_TRACEPOINT_PROBE(ext4_da_write_end)
{
	void *inode = (void *)ctx->args[0];
	struct told *told;

	if (FIELD(super_block, s_dev, FIELD(inode, i_sb, inode)) != DEVICE)
		return 0;
	told = ring.ringbuf_reserve(sizeof(struct told));
	if (!told)
		return 0;
	told->ts = bpf_ktime_get_ns();
	told->ino = FIELD(inode, i_ino, inode);
	told->off = ctx->args[1];
	told->len = (u32)ctx->args[3];
	told->root = 0;
	told->cgroup = bpf_get_current_cgroup_id();
	told->gen = FIELD(inode, i_generation, inode);
	told->pid = bpf_get_current_pid_tgid() >> 32;
	told->kind = 1;
	told->fs = told->flags = told->epoch = 0;
	ring.ringbuf_submit(told, 0);
	return 0;
}
"""


class Workload(NamedTuple):
    """Writes to some files, all of one size."""

    name: str
    files: int
    sequential: bool

    @property
    def size(self) -> int:
        """Bytes of a file, a whole number of writes."""
        return SPREAD // self.files // BYTES * BYTES

    def writes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The file and the offset of each of `RECORDS` writes: no place is written twice."""
        if self.sequential:
            return np.zeros(RECORDS, np.int64), np.arange(RECORDS) * BYTES
        slots = self.size // BYTES
        places = np.random.default_rng(7).choice(self.files * slots, RECORDS, replace=False)
        return places // slots, places % slots * BYTES


WORKLOADS = (
    Workload("one file, in a row", 1, sequential=True),
    Workload("one file, at random", 1, sequential=False),
    Workload("100 files, at random", 100, sequential=False),
    Workload("10,000 files, at random", 10_000, sequential=False),
)

Covered = Mapping[FileId, RangeSet]


class Counters:
    """How far the reader and the writers of a ring are."""

    def __init__(self, descriptor: int) -> None:
        self._pages = (
            mmap.mmap(descriptor, mmap.PAGESIZE),
            mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE),
        )
        self._consumer, self._producer = (np.frombuffer(page, np.uint64, 1) for page in self._pages)
        self._begin = 0

    def skip(self) -> None:
        """Leave out what was told until now, for good."""
        self._begin = int(self._producer[0])
        self.rewind()

    def rewind(self) -> None:
        """Have all that was told since `skip` read again."""
        self._consumer[0] = self._begin

    def waiting(self) -> int:
        """Records that were not read."""
        return (int(self._producer[0]) - int(self._consumer[0])) // STRIDE

    def close(self) -> None:
        self._consumer = self._producer = np.zeros(1, np.uint64)
        for page in self._pages:
            page.close()


class Reader(ABC):
    """One way to read a ring."""

    name: str

    def __init__(self, descriptor: int) -> None:
        self.counters = Counters(descriptor)

    @abstractmethod
    def read(self) -> tuple[float, Covered]:
        """Read all that waits: ns a record, and what was told of."""

    def close(self) -> None:
        """May be called twice."""
        self.counters.close()


class Ours(Reader):
    """The sender's way; with a journal if there is a directory for one."""

    def __init__(self, sensor: TracepointSensor, index: TreeIndex, limit: int, journals: Path | None = None) -> None:
        super().__init__(sensor.fileno())
        self.name = OURS if journals is None else JOURNAL
        self.parts: dict[str, list[float]] = {}
        """By part of the work: ns a record, in each turn."""
        self._descriptor, self._index, self._limit, self._journals = sensor.fileno(), index, limit, journals

    def read(self) -> tuple[float, Covered]:
        with ExitStack() as stack:
            ring = stack.enter_context(closing(Ring(self._descriptor, RING_BYTES)))
            journal = None if self._journals is None else stack.enter_context(journal_in(self._journals))
            return self._read(ring, journal)

    def _read(self, ring: Ring, journal: Journal | None) -> tuple[float, Covered]:
        table, outsiders, writers = DirtyTable(Generations()), MappedOutsiders(), Writers()
        clock = time.thread_time_ns
        waiting = self.counters.waiting()
        taken = draining = keeping = merging = 0
        while True:
            begun = clock()
            records = ring.drain(self._limit)
            if records is None:
                break
            drained = clock()
            if journal is not None:
                journal.events(records.tobytes(), time.monotonic_ns())
            kept = clock()
            ring.advance()
            taken += merge(records, table, self._index.is_member, outsiders, writers)
            merging += clock() - kept
            keeping += kept - drained
            draining += drained - begun
        if taken != waiting or self.counters.waiting():
            raise SystemExit(f"of {waiting} records {taken} were merged; no figure counts")
        for part, used in (("drain", draining), ("journal", keeping), ("merge", merging)):
            if journal is not None or part != "journal":
                self.parts.setdefault(part, []).append(used / taken)
        return (draining + keeping + merging) / taken, {owed.id: owed.ranges for owed in table.values() if owed.ranges}


@contextmanager
def journal_in(parent: Path) -> Iterator[Journal]:
    """A new one."""
    with tempfile.TemporaryDirectory(prefix="journal-", dir=parent) as directory:
        journal = Journal(Path(directory), 1, Generations(), lambda: (), lambda: None)
        journal.begin(time.monotonic_ns(), anew=True)
        try:
            yield journal
        finally:
            journal.close()
            if journal.trouble:
                raise SystemExit(f"the journal could not be written: {journal.trouble}; no figure counts")


class OfBcc(Reader):
    """BCC's way: a callback for each record."""

    def __init__(self, source: SourceRoot, *, empty: bool) -> None:
        os.environ["BCC_KERNEL_SOURCE"] = str(header_tree())
        compat = (ebpf_directory() / "compat.h").read_text()
        constants = layout.constants([compat, PROGRAM], kernel_types(("ext4",)))
        defines = f"#define DEVICE {source.kernel_dev}\n#define PAGES {RING_BYTES // mmap.PAGESIZE}\n"
        self._bpf: Any = load_bcc().BPF(text=defines + constants + compat + PROGRAM)
        super().__init__(self._bpf["ring"].map_fd)
        self.name = EMPTY if empty else BCC
        self._empty = empty
        self._count = 0
        self._covered: dict[FileId, RangeSet] = {}
        self._bpf["ring"].open_ring_buffer(self._nothing if empty else self._add)

    @staticmethod
    def _nothing(_ctx: Any, _data: Any, _size: int) -> int:
        return 0

    def _add(self, _ctx: Any, data: Any, _size: int) -> int:
        told = self._bpf["ring"].event(data)
        id = FileId(0, 0, told.ino, told.gen)
        ranges = self._covered.get(id)
        if ranges is None:
            ranges = self._covered[id] = RangeSet()
        ranges.add(told.off, told.off + told.len)
        self._count += 1
        return 0

    def read(self) -> tuple[float, Covered]:
        waiting = self.counters.waiting()
        self._count, self._covered = 0, {}
        begun = time.thread_time_ns()
        self._bpf.ring_buffer_consume()
        used = time.thread_time_ns() - begun
        if self.counters.waiting() or (not self._empty and self._count != waiting):
            raise SystemExit(f"BCC's callback has seen {self._count} of {waiting} records; no figure counts")
        return used / waiting, self._covered

    def close(self) -> None:
        super().close()
        self._bpf.cleanup()


class Files:
    """A workload's files, all of them members of the tree."""

    def __init__(self, workload: Workload, source: SourceRoot, index: TreeIndex) -> None:
        self._workload = workload
        self._directory = Path(source.path) / "files"
        self._directory.mkdir()
        self._fds: list[int] = []
        self.ids: list[FileId] = []
        try:
            for number in range(workload.files):
                fd = os.open(self._directory / f"{number}", os.O_RDWR | os.O_CREAT)
                self._fds.append(fd)
                os.ftruncate(fd, workload.size)
                self.ids.append(source.id_of(fd))
                index.bind(Slot(index.root, b"%d" % number), self.ids[-1], Kind.FILE)
        except BaseException:
            self.close()
            raise

    def write(self, told: Counters) -> dict[FileId, npt.NDArray[np.int64]]:
        """Write until enough is told: the offsets, file by file, sorted."""
        data = os.urandom(BYTES)
        numbers, offsets = self._workload.writes()
        done = 0
        for file, offset in zip(numbers.tolist(), offsets.tolist(), strict=True):
            os.pwrite(self._fds[file], data, offset)
            done += 1
            if not done % 256 and told.waiting() >= RECORDS:
                break
        numbers, offsets = numbers[:done], offsets[:done]
        order = np.lexsort((offsets, numbers))
        numbers, offsets = numbers[order], offsets[order]
        bounds = np.searchsorted(numbers, np.arange(len(self._fds) + 1)).tolist()
        written = (offsets[first:last] for first, last in pairwise(bounds))
        return {id: places for id, places in zip(self.ids, written, strict=True) if len(places)}

    def close(self) -> None:
        """Remove them, before anything is written to the disk."""
        for fd in self._fds:
            os.close(fd)
        shutil.rmtree(self._directory)


def check(reader: str, written: Mapping[FileId, npt.NDArray[np.int64]], covered: Covered) -> None:
    """Ends the process unless the ranges are those that were written."""
    if covered.keys() != written.keys():
        raise SystemExit(f"{reader}: {len(written)} files were written to, {len(covered)} told of; no figure counts")
    for id, offsets in written.items():
        begins = np.flatnonzero(np.diff(offsets, prepend=-BYTES - 1) != BYTES)
        starts, ends = offsets[begins], offsets[np.append(begins[1:], len(offsets)) - 1] + BYTES
        told = np.array(list(covered[id]), np.int64)
        if len(starts) <= DEFAULT_LIMIT:
            right = np.array_equal(told, np.column_stack((starts, ends)))
        else:
            at = np.searchsorted(told[:, 0], starts, "right") - 1
            right = bool(np.all(told[at, 1] >= ends)) and (told[0, 0], told[-1, 1]) == (starts[0], ends[-1])
        if not right:
            raise SystemExit(f"{reader}: the ranges are not those that were written; no figure counts")


def measure(source: SourceRoot, journals: Path, limit: int, turns: int) -> dict[str, Any]:
    """All workloads, as one object."""
    index = TreeIndex(source.id)
    sensor = TracepointSensor()
    result: dict[str, Any] = {}
    with ExitStack() as stack:
        stack.callback(sensor.close)
        sensor.attach(source)
        makers: tuple[Callable[[], Reader], ...] = (
            partial(Ours, sensor, index, limit),
            partial(Ours, sensor, index, limit, journals),
            partial(OfBcc, source, empty=True),
            partial(OfBcc, source, empty=False),
        )
        readers = [stack.enter_context(closing(make())) for make in makers]
        gc.collect()
        gc.freeze()  # as the sender does
        for workload in WORKLOADS:
            files = Files(workload, source, index)
            try:
                result[workload.name] = of_workload(files, sensor, readers, turns)
            finally:
                files.close()
    return result


def of_workload(files: Files, sensor: TracepointSensor, readers: Sequence[Reader], turns: int) -> dict[str, Any]:
    """Write, and have all read it in turn."""
    for reader in readers:
        reader.counters.skip()
    written = files.write(readers[0].counters)
    if any(sensor.losses().values()):
        raise SystemExit(f"records were lost: {sensor.losses()}; no figure counts")
    writes = sum(map(len, written.values()))
    found: dict[str, list[float]] = {}
    for number in range(turns + 1):
        for reader in readers:
            reader.counters.rewind()
            used, covered = reader.read()
            if number == turns and reader.name != EMPTY:
                check(reader.name, written, covered)
            if number:  # the first is for the caches
                found.setdefault(reader.name, []).append(used)
            elif isinstance(reader, Ours):
                reader.parts.clear()
    figures: dict[str, Any] = {"writes": writes}
    for reader in readers:
        reader.counters.rewind()
        ns = statistics.median(found[reader.name])
        figures[reader.name] = {"records": reader.counters.waiting(), "ns": ns, "per_second": 1e9 / ns}
        if isinstance(reader, Ours):
            figures[reader.name] |= {f"{part}_ns": statistics.median(used) for part, used in reader.parts.items()}
            reader.parts.clear()
    figures["times_bcc"] = figures[BCC]["ns"] / figures[OURS]["ns"]
    figures["times_bcc_empty"] = figures[EMPTY]["ns"] / figures[OURS]["ns"]
    return figures


def table_of(rows: Mapping[str, Any]) -> Table:
    """A row for each workload and reader."""
    parts = ("drain", "journal", "merge")
    table = Table("", "records", "million/s", "ns each", *parts, "times ours")
    for workload, figures in rows.items():
        table.add_section()
        table.add_row(workload)
        for name in (OURS, JOURNAL, EMPTY, BCC):
            row = figures[name]
            table.add_row(
                f"  {name}",
                f"{row['records']}",
                f"{row['per_second'] / 1e6:.2f}",
                f"{row['ns']:.0f}",
                *(f"{row[f'{part}_ns']:.0f}" if f"{part}_ns" in row else "" for part in parts),
                f"{row['ns'] / figures[OURS]['ns']:.1f}",
            )
    return table


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int, default=3, help="how often each reads what was told")
    parser.add_argument("--limit", type=int, default=LIMIT, help="records that are drained at once")
    options = parsed(parser)
    most = max(workload.files for workload in WORKLOADS)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most + 1000, max(most + 1000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    )
    with tempfile.TemporaryDirectory(prefix="rsyncfs-bench-", dir=options.directory) as name:
        volume = Volume(Path(name), most, size=2 * SPREAD)
        try:
            with SourceRoot.open(volume.point) as source:
                rows = measure(source, Path(name), options.limit, options.turns)
        except RsyncfsError as error:
            raise SystemExit(str(error)) from error
        finally:
            volume.close()
    met = {
        workload: row[OURS]["per_second"] >= TARGET and row["times_bcc"] >= TIMES_BCC for workload, row in rows.items()
    }
    figures = {
        "limit": options.limit,
        "target_per_second": TARGET,
        "target_times_bcc": TIMES_BCC,
        "met": met,
        "rows": rows,
    }
    remarks = [
        f"target: {TARGET / 1e6:.0f} million per CPU-second, and {TIMES_BCC} times BCC: "
        + ", ".join(f"{workload}: {'met' if well else 'not met'}" for workload, well in met.items())
    ]
    picture = Bars(
        "Records decoded and merged in a second of processor time",
        "million records per CPU-second",
        {
            workload: {name: row[name]["per_second"] / 1e6 for name in (OURS, JOURNAL, EMPTY, BCC)}
            for workload, row in rows.items()
        },
        log=True,
        target=TARGET / 1e6,
    )
    publish(Report("decode", figures, [table_of(rows)], picture, remarks), options)


if __name__ == "__main__":
    main()

"""How much bulk may be on its way: all that fits while it is alone, a window beside small changes."""

from __future__ import annotations

from replicator.model import Attributes, Facts, FileId, InodeFact, Kind, Slot
from replicator.source.epochs import Payload
from replicator.source.flight import Part
from replicator.source.outbox import Outbox
from replicator.source.traffic import EPOCH_BYTES, LATELY, LEAST, SLICE, SMALL, TARGET, UNAPPLIED, Traffic
from replicator.tree.exclude import Exclude

ROOT, BIG, LINE = FileId(0, 0, 2, 0), FileId(0, 0, 12, 1), FileId(0, 0, 13, 1)
MS = 1_000_000


class World:
    """An outbox with two files that the replica knows; what is read of them is told by the test."""

    def __init__(self) -> None:
        self.outbox = Outbox(ROOT, Exclude(()))
        for name, id in ((b"big", BIG), (b"line", LINE)):
            self.outbox.index.bind(Slot(ROOT, name), id, Kind.FILE)

    def read(self, id: FileId, size: int, *, partial: bool = False, now: int = 0) -> None:
        self.outbox.table.mark(id, now).ranges.add(0, size)
        (flush,) = self.outbox.reads.begin(now, 1)
        fact = InodeFact(id, Kind.FILE, Attributes(0o644, 0, 0, 1, 1), size, partial=partial)
        self.outbox.reads.done(Part(flush, fact, [(0, bytes(size))]), now)

    def compose(self, bulk: int = EPOCH_BYTES, *, small: bool = True) -> list[FileId]:
        """The inodes of the next epoch."""
        composed: tuple[Facts, Payload] | None = self.outbox.epochs.compose(bulk, small=small, apart=True)
        return [fact.id for fact in composed[0].inodes] if composed else []


def busy(rate_mib: int = 0, round_trip: int = 0) -> Traffic:
    """With a small change just now, and a measured rate of MiB a second."""
    world = World()
    world.read(LINE, 512, now=1)
    traffic = world.outbox.traffic
    if rate_mib:
        traffic.sent(1, rate_mib << 20, 0)
        traffic.applied(1, 1000 * MS, round_trip)
    return traffic


def test_bulk_alone_goes_in_large_epochs() -> None:
    world = World()
    world.read(BIG, SLICE, partial=True)
    traffic = world.outbox.traffic
    for number in range(UNAPPLIED):
        assert traffic.room(0) == traffic.slice(0) == EPOCH_BYTES
        traffic.sent(number, EPOCH_BYTES, 0)
    assert traffic.room(0) == 0
    assert traffic.open


def test_beside_small_changes_it_goes_in_slices_within_the_window() -> None:
    traffic = busy()
    sent = 0
    while traffic.room(2):
        assert traffic.room(2) == traffic.slice(2) == SLICE
        sent += SLICE
        traffic.sent(sent, SLICE, 2)
    assert sent == LEAST
    assert traffic.open
    traffic.applied(SLICE, 3, 0)
    assert traffic.room(3) == SLICE


def test_small_changes_have_their_own_limit() -> None:
    traffic = busy()
    for number in range(UNAPPLIED):
        assert traffic.open
        traffic.sent(number, 0, 2)
    assert not traffic.open
    assert traffic.room(2) == SLICE


def test_the_window_follows_what_is_applied_and_the_path() -> None:
    assert busy(10).window == LEAST
    rate = 2000 << 20
    assert busy(2000).window == rate * TARGET // 10**9
    assert busy(2000, 100 * MS).window == rate * (TARGET + 100 * MS) // 10**9


def test_another_connection_measures_anew() -> None:
    traffic = busy(2000, 100 * MS)
    traffic.sent(2, SLICE, 2)
    traffic.lost()
    assert traffic.window == LEAST
    assert traffic.room(2) == SLICE


def test_after_a_while_bulk_is_alone_again() -> None:
    traffic = busy()
    assert traffic.shared(LATELY)
    assert not traffic.shared(LATELY + 1)


def test_the_end_of_a_big_file_is_no_small_change() -> None:
    world = World()
    world.read(BIG, SMALL + 1)
    assert world.compose() == [BIG]
    world.read(BIG, 100)
    assert not world.outbox.traffic.shared(1)
    world.read(LINE, 100)
    assert world.outbox.traffic.shared(1)


def test_a_small_part_goes_first_and_apart() -> None:
    world = World()
    world.read(BIG, SMALL + 1)
    world.read(LINE, 512)
    assert world.compose() == [LINE]
    assert world.compose() == [BIG]
    assert world.compose() == []


def test_a_small_part_goes_though_bulk_may_not() -> None:
    world = World()
    world.read(BIG, SMALL + 1)
    world.read(LINE, 512)
    assert world.compose(0) == [LINE]
    assert world.compose(0) == []
    assert world.compose(SLICE, small=False) == [BIG]


def test_neither_starves_the_other() -> None:
    world = World()
    world.read(BIG, SMALL + 1)
    told = []
    for now in range(4):
        world.read(LINE, 512, now=now)
        told += world.compose()
        if BIG in told:
            break
    assert BIG in told

"""Flushes on their way out of the table: being read, read and waiting for an epoch, or cut in slices and to be read on.

Takes finished reads; gives flushes to be read and parts to be composed. The reads themselves are done by whoever drives
it (replicator/reading.py). Of one inode one flush at a time is begun. Pure.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator

from replicator.dirty.ranges import RangeSet
from replicator.dirty.table import Owed
from replicator.model import FileId
from replicator.source.clock import WallClock
from replicator.source.debts import Debts
from replicator.source.flight import SETTLED_AFTER, Flush, Part
from replicator.source.traffic import Traffic

CROWD = 64
"""Flushes that are out, beyond which ..."""
SHORT = 256 << 10
"""... the first slice of another one has so many bytes at most: all of them are in memory together."""


class Reads:
    """Of one outbox: a container of the inodes whose flushes were begun and are not composed to their end."""

    def __init__(self, debts: Debts, traffic: Traffic, clock: Callable[[], int], steady: Callable[[], int]) -> None:
        """`clock`: ns since the epoch, as the kernel's for ctime; `steady`: ns of one that is never set."""
        self._debts = debts
        self._traffic = traffic
        self._clock = WallClock(clock, steady, SETTLED_AFTER)
        self.calming = False
        """Whether `begin` passed over something that will be ready in a moment."""
        self.sought: dict[FileId, None] = {}
        """Directories that finished reads wait for, and that are not being read yet."""
        self.parts: deque[Part] = deque()
        """Read, and not in an epoch."""
        self._flushes: dict[FileId, Flush] = {}
        self._more: deque[Flush] = deque()
        self._last: OrderedDict[FileId, int] = OrderedDict()  # when each was last read, in that order

    def __len__(self) -> int:
        return len(self._flushes)

    def __contains__(self, id: object) -> bool:
        return id in self._flushes

    def __iter__(self) -> Iterator[FileId]:
        yield from self._flushes

    def owed(self) -> Iterator[Owed]:
        """What they carry."""
        yield from (flush.owed for flush in self._flushes.values())

    def get(self, id: FileId) -> Flush | None:
        """The flush of this inode."""
        return self._flushes.get(id)

    def current(self, flush: Flush) -> bool:
        """Whether the flush is still wanted: a lost connection folds every flush that is being read back."""
        return self._flushes.get(flush.owed.id) is flush

    @property
    def readable(self) -> bool:
        """Whether something may be read however much is out: a slice of a begun flush, or what others wait for."""
        return bool(self._more) or any(not self._debts.pace.holds(id) for id in self.sought)

    # ------------------------------------------------------------------ out

    def begin(self, now: int, items: int, big: int = 1 << 20, big_items: int = 2, calm: int = 0) -> list[Flush]:
        """Up to `items` flushes to read (a slice of), small ones before those of more than `big` bytes. With them goes
        what was refused and may be tried again.

        What was told before its effect (a clone, a punched hole, an appended line) is often told in many steps: such an
        inode is left alone until `calm` ns have passed since the last of them, or ten times that since the first. One
        that was not read for four times `calm` is read at once: a line now and then need not wait.
        """
        self._debts.refused.retry(now)
        # Parts that wait for a directory are in the way of others, and it must not wait for room in its turn.
        pace = self._debts.pace
        chosen = [self._begin(id, now) for id in self.sought if self._may_begin(id) and pace.may_try(id, now)]
        self.sought.clear()
        items += len(chosen)
        bulky = [self._more.popleft() for _ in range(min(len(self._more), big_items))]
        room = big_items - len(bulky)
        late: list[FileId] = []
        self.calming = False
        for id in self._eligible(now, items * 4):
            if len(chosen) >= items:
                break
            owed = self._debts.table.get(id)
            if owed is not None and self._is_moving(owed, now, calm):
                self.calming = True
                continue
            if owed is not None and owed.ranges.total > big and not owed.whole:
                late.append(id)
                continue
            chosen.append(self._begin(id, now))
        chosen += [self._begin(id, now) for id in late[: max(0, room)]]
        most = self._traffic.slice(now)
        for flush in chosen:
            flush.most = min(flush.most, most)
        for flush in bulky:
            flush.most = most
        return chosen + bulky

    def _is_moving(self, owed: Owed, now: int, calm: int) -> bool:
        if now - owed.begun >= calm or now - owed.since >= 10 * calm:
            return False
        return owed.whole or now - self._last.get(owed.id, 0) < 4 * calm

    def _eligible(self, now: int, most: int) -> list[FileId]:
        debts, result = self._debts, []
        for id in debts.table:
            if id in self._flushes or id in debts.doubts or not debts.pace.may_try(id, now):
                continue
            result.append(id)
            if len(result) >= most:
                break
        return result

    def _may_begin(self, id: FileId) -> bool:
        return id in self._debts.table and id not in self._flushes and id not in self._debts.doubts

    def _begin(self, id: FileId, now: int) -> Flush:
        table, sizes = self._debts.table, self._debts.sizes
        owed = table.ask_first(table.take(id))
        known = sizes.get(id) if owed.whole or owed.check else sizes.known(id)
        taken = self._clock()
        flush = Flush(owed, known, taken=taken, even=self._clock.even, begun=now, fence=table.fence)
        flush.regular = self._debts.index.is_regular(id)
        if len(self._flushes) >= CROWD:
            flush.most = SHORT
        self._flushes[id] = flush
        return flush

    # ------------------------------------------------------------------ back

    def done(self, part: Part, now: int) -> None:
        """A slice was read. If its fact is partial, the flush's `left` and `size` tell the next one where to go on."""
        flush = part.flush
        self._last[flush.owed.id] = now
        self._last.move_to_end(flush.owed.id)
        if not self._debts.index.is_member(flush.owed.id):
            self.gone(flush)
        elif self.current(flush):
            self._debts.table.seen(
                flush.owed,
                part.waited,
                part.read,
                part.sent,
                flush.size,
                all_read=not part.fact.partial,
                fence=flush.fence,
            )
            self._traffic.read(part, now)
            self.parts.append(part)

    def gone(self, flush: Flush) -> None:
        """A read found that the inode does not exist any more: its names will tell, nothing is owed for it."""
        if self.current(flush):
            del self._flushes[flush.owed.id]
            self._debts.generations.release(flush.owed.generation)
            self._debts.naming.release(flush.owed.id)

    def put_off(self, flush: Flush) -> None:
        """A read only waited: all of it is owed still, with what was told meanwhile, and may be read at once."""
        if self.current(flush):
            del self._flushes[flush.owed.id]
            flush.owed.waited = True
            self._debts.fold(flush.owed)

    def owe_again(self, flush: Flush, ranges: RangeSet, now: int) -> None:
        """A read could not see these ranges yet; they stay dirty, with the age of the flush."""
        if not self.current(flush):
            return
        owed = self._debts.table.mark(flush.owed.id, min(now, flush.owed.since), flush.owed.generation)
        owed.ranges.update(ranges)
        owed.beyond = flush.owed.beyond + 1

    def failed(self, flush: Flush, now: int) -> None:
        """A read failed; everything stays owed and is tried again later."""
        if not self.current(flush):
            return
        del self._flushes[flush.owed.id]
        self._debts.pace.defer(flush.owed.id, now)
        self._debts.table.fold(flush.owed)

    # ------------------------------------------------------------------ into an epoch, or not

    def seek(self, directories: Iterable[FileId]) -> None:
        """A part waits for these: those that are not being read are next."""
        self.sought.update(dict.fromkeys(filter(self._may_begin, directories)))

    def go_on(self, flush: Flush) -> None:
        """A slice of it is in an epoch: the next one may be read."""
        self._more.append(flush)

    def end(self, id: FileId) -> None:
        """The last of it is in an epoch."""
        self._flushes.pop(id, None)

    def abandon(self, id: FileId) -> None:
        """Further slices of what was refused would be in vain: it is owed again."""
        flush = self._flushes.pop(id, None)
        if flush is not None:
            self.parts = deque(part for part in self.parts if part.flush is not flush)
            self._more = deque(other for other in self._more if other is not flush)
            self._debts.fold(flush.owed)

    def abandon_all(self) -> None:
        """The connection is lost: all of it is owed again."""
        self.parts.clear()
        self.sought.clear()
        self._more.clear()
        for flush in list(self._flushes.values()):
            self._debts.fold(flush.owed)
        self._flushes.clear()

    # ------------------------------------------------------------------ what was read lately

    def since(self, when: int) -> Iterator[FileId]:
        """What was read since then."""
        yield from (id for id, at in self._last.items() if at >= when)

    def forget_before(self, when: int) -> None:
        """Nobody will ask for what was read before."""
        while self._last and next(iter(self._last.values())) < when:
            self._last.popitem(last=False)

    def forget(self, id: FileId) -> None:
        """It is no member any more. Its flush, if there is one, ends when it is read or composed."""
        self._last.pop(id, None)

"""Reads a BPF ring buffer's pages in bulk: records in, one numpy array out, no callback for each.

Takes the descriptor of a BPF_MAP_TYPE_RINGBUF map whose records have the size of `EVENT`, or that and room for a name,
which is a whole number of strides; gives copies of them in ring order. Positions are bytes since the ring was made and
only grow. Not for several readers.

The kernel wakes a sleeping reader only for a record that lies exactly at the consumer position (the reader had read
all others), and a poll answers "readable" whenever the positions differ. So a reader that polls after `advance()`, and
again whenever poll said "readable", misses no record; one that trusts a wake-up without polling would.
"""

from __future__ import annotations

import mmap
import struct

import numpy as np
import numpy.typing as npt

from replicator.capture.event import EVENT, FIELDS, LONG_NAME, LUMP, SHORT_NAME, EventKind, Events

BUSY = 1 << 31
"""Of a record header's length: reserved, not submitted yet."""
DISCARD = 1 << 30
"""Of a record header's length: to be passed over."""

_SLOT = np.dtype([("length", "<u4"), ("page", "<u4"), ("event", LUMP)])
STRIDE: int = _SLOT.itemsize
"""Bytes from one record to the next: the kernel's header of 8 and the record, a multiple of 8 as it is."""

_ROOMS = {EVENT.itemsize + room: 1 + room // STRIDE for room in (SHORT_NAME, LONG_NAME)}
"""By the length of a record with a name: how many strides it takes."""
_MOST = max(_ROOMS.values())
_LENGTH = struct.Struct("<I")
_HEAD = STRIDE - EVENT.itemsize
_CHECKED = 1 << 16


class RingError(RuntimeError):
    """The ring holds what the only writer of records does not write."""


class RingView:
    """Decodes what is between two positions; knows nothing of where the pages come from.

    `consumer` and `producer` are one-element arrays over the two counters, `data` the ring's bytes mapped twice in a
    row (so that a record which wraps lies in one piece).
    """

    def __init__(
        self, consumer: npt.NDArray[np.uint64], producer: npt.NDArray[np.uint64], data: npt.NDArray[np.uint8]
    ) -> None:
        self._consumer = consumer
        self._producer = producer
        self._data = data
        self._mask = len(data) // 2 - 1
        if len(data) // 2 & self._mask:
            raise ValueError("the ring's size is not a power of two")
        self._position = int(consumer[0])
        self.names: list[bytes] = []
        """Of the last `drain`."""
        self._one_by_one = producer.data, data.data

    def drain(self, limit: int) -> Events | None:
        """A copy of at most `limit` next records, in order; None if there are none. Stops at a busy record.

        `names` holds the names of those of them that have one. RingError if a record of another size is met: positions
        are then unknown for good.
        """
        self.names = []
        while True:
            there = (int(self._producer[0]) - self._position) // STRIDE
            count = min(there, limit)
            if count <= 0:
                return None
            start = self._position & self._mask
            slots = self._data[start : start + count * STRIDE].view(_SLOT)
            # Read once, and before the records: a length without BUSY means that its record is complete.
            lengths = slots["length"].copy()
            odd = np.flatnonzero(lengths != EVENT.itemsize)
            if not len(odd):
                self._position += count * STRIDE
                return slots["event"].copy().view(EVENT)
            kept, count = self._sort_out(lengths, odd.tolist())
            if not count:
                if lengths[0] & BUSY:
                    return None
                limit = _MOST  # the first one is longer than was asked for
                continue
            self._position += count * STRIDE
            if kept.any():
                events = slots["event"][:count][kept].view(EVENT)
                self._read_names(start, np.flatnonzero(kept), events)
                return events

    def few(self, most: int) -> tuple[list[tuple[int, ...]], bytes] | None:
        """The records that wait, as tuples of their fields, and as they lie in the ring, if there are at most `most`.

        None if there are none or more of them, or one that has a name or is not complete: then `drain`. The same, but
        for a few records numpy's calls take longer than all else that is done with them.
        """
        counter, data = self._one_by_one
        there = int(counter[0]) - self._position
        if not 0 < there <= most * STRIDE or there % STRIDE:
            return None
        start = self._position & self._mask
        places = range(start, start + there, STRIDE)
        for at in places:  # a length without BUSY means that its record is complete
            if _LENGTH.unpack_from(data, at)[0] != EVENT.itemsize:
                return None
        self._position += there
        self.names = []
        records = [FIELDS.unpack_from(data, at + _HEAD) for at in places]
        return records, b"".join([data[at + _HEAD : at + STRIDE] for at in places])

    def _sort_out(self, lengths: npt.NDArray[np.uint32], odd: list[int]) -> tuple[npt.NDArray[np.bool_], int]:
        """Which of the slots hold a record to keep, and how many belong to complete records.

        `odd` are those whose length is not that of a record without a name. What lies inside a record that takes
        several looks like anything, so only the slots between records are judged.
        """
        kept = np.ones(len(lengths), np.bool_)
        behind = 0
        for at in odd:
            if at < behind:
                continue
            length = int(lengths[at])
            strides = 1
            if length & BUSY:
                return kept[:at], at
            size = length & ~DISCARD
            if size != EVENT.itemsize:
                if size not in _ROOMS:
                    raise RingError(f"a record in the ring is {size} bytes long")
                strides = _ROOMS[size]
                if at + strides > len(lengths):
                    return kept[:at], at
            kept[at : at + strides] = False
            kept[at] = not length & DISCARD
            behind = at + strides
        return kept, len(lengths)

    def _read_names(self, start: int, slots: npt.NDArray[np.intp], events: Events) -> None:
        named = np.flatnonzero(events["kind"] == int(EventKind.NAME))
        for slot, length in zip(slots[named].tolist(), (events["len"][named] >> 32).tolist(), strict=True):
            at = start + (slot + 1) * STRIDE
            self.names.append(self._data[at : at + min(length, LONG_NAME)].tobytes())

    def check(self) -> None:
        """RingError unless all that waits can be drained: for a ring that another process has read until now.

        Nothing is taken from it.
        """
        begin, end = self._position, self.produced()
        if begin > end or end - begin > self._mask + 1 or begin % 8:
            raise RingError(f"the ring's reader is at {begin}, its writer at {end}")
        try:
            while self.drain(_CHECKED) is not None:
                pass
        finally:
            self._position = begin
            self.names = []

    def advance(self) -> None:
        """Give the space of all drained records back to the writers."""
        self._consumer[0] = self._position

    def produced(self) -> int:
        """Where the next record will go. Everything submitted before the call lies below."""
        return int(self._producer[0])

    def consumed(self) -> int:
        """Up to where records have been drained (given back or not)."""
        return self._position


class Ring(RingView):
    """A ring of this kernel, mapped. `size` is the map's max_entries in bytes."""

    def __init__(self, descriptor: int, size: int) -> None:
        page = mmap.PAGESIZE
        self.descriptor = descriptor
        self.size = size
        self._pages = [
            mmap.mmap(descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0),
            mmap.mmap(descriptor, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page),
        ]
        consumer = np.frombuffer(self._pages[0], np.uint64, 1)
        producer = np.frombuffer(self._pages[1], np.uint64, 1)
        data = np.frombuffer(self._pages[1], np.uint8, 2 * size, page)
        super().__init__(consumer, producer, data)

    def close(self) -> None:
        """Unmap. The descriptor stays the caller's; nothing else may be called afterwards."""
        empty = np.zeros(1, np.uint64)
        self._consumer = self._producer = empty
        self._data = np.zeros(0, np.uint8)
        self._one_by_one = empty.data, self._data.data
        for pages in self._pages:
            pages.close()
        self._pages = []

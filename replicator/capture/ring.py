"""Reads a BPF ring buffer's pages in bulk: records in, one numpy array out, no callback for each.

Takes the descriptor of a BPF_MAP_TYPE_RINGBUF map whose records all have the size of `EVENT`; gives copies of them in
ring order. Positions are bytes since the ring was made and only grow. Not for several readers.

The kernel wakes a sleeping reader only for a record that lies exactly at the consumer position (the reader had read
all others), and a poll answers "readable" whenever the positions differ. So a reader that polls after `advance()`, and
again whenever poll said "readable", misses no record; one that trusts a wake-up without polling would.
"""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt

from replicator.capture.event import EVENT, Events

BUSY = 1 << 31
"""Of a record header's length: reserved, not submitted yet."""
DISCARD = 1 << 30
"""Of a record header's length: to be passed over."""

_SLOT = np.dtype([("length", "<u4"), ("page", "<u4"), ("event", EVENT)])
STRIDE: int = _SLOT.itemsize
"""Bytes from one record to the next: the kernel's header of 8 and the record, a multiple of 8 as it is."""


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

    def drain(self, limit: int) -> Events | None:
        """A copy of at most `limit` next records, in order; None if there are none. Stops at a busy record.

        RingError if a record of another size is met: positions are then unknown for good.
        """
        while True:
            count = min((int(self._producer[0]) - self._position) // STRIDE, limit)
            if count <= 0:
                return None
            start = self._position & self._mask
            slots = self._data[start : start + count * STRIDE].view(_SLOT)
            # Read once, and before the records: a length without BUSY means that its record is complete.
            lengths = slots["length"].copy()
            busy = lengths & BUSY != 0
            if busy.any():
                count = int(busy.argmax())
                if count == 0:
                    return None
                lengths, slots = lengths[:count], slots[:count]
            if np.any(lengths & ~np.uint32(DISCARD) != EVENT.itemsize):
                raise RingError(f"a record in the ring is not {EVENT.itemsize} bytes long")
            self._position += count * STRIDE
            kept = lengths & DISCARD == 0
            if kept.all():
                return slots["event"].copy()
            if kept.any():
                return slots["event"][kept]

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
        for pages in self._pages:
            pages.close()
        self._pages = []

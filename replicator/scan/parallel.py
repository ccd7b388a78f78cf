"""Several iterators at once, each in a thread, as one.

Takes iterators that spend their time in the kernel or in numpy; gives what they give, in no order. What one raises is
raised to the reader. Readers that stop early stop the threads, after at most one more item each.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Final, TypeVar

Item = TypeVar("Item")

WAITING: Final = 8
"""Items that may wait for the reader."""

THREADS: Final = 4
"""However few processors there are: disks are waited for."""


def side_by_side(parts: Sequence[Generator[Item, None, None]]) -> Generator[Item, None, None]:
    """What all parts give. Once it is closed, no thread uses what is theirs any more."""
    todo = iter(parts)
    ready: queue.Queue[Item | BaseException | None] = queue.Queue(WAITING)
    stopped = threading.Event()
    turn = threading.Lock()

    def work() -> None:
        try:
            while not stopped.is_set():
                with turn:
                    part = next(todo, None)
                if part is None:
                    break
                with closing(part):
                    for item in part:
                        ready.put(item)
                        if stopped.is_set():
                            return
        except BaseException as error:  # noqa: BLE001 - raised to the reader
            ready.put(error)
        finally:
            ready.put(None)

    threads = [threading.Thread(target=work, name="scan", daemon=True) for _ in range(min(THREADS, len(parts)))]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            item = ready.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        stopped.set()
        while running:  # those that wait to hand something over go on to their end
            running -= ready.get() is None
        for thread in threads:
            thread.join()

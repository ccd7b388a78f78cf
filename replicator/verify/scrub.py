"""The scrub: every so often, in the background and slowly, everything is compared, and what differs is told and mended.

A difference in what nobody touches is a fault of this program, of a disk, or somebody else's change: it is logged and
counted before it is mended. The time is counted from the end of the last scrub, also over restarts.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

import orjson

from replicator.verify.found import Found, text
from replicator.verify.repair import Repair
from replicator.verify.sweep import Sweep

if TYPE_CHECKING:
    from replicator.sender import Sender

log = logging.getLogger(__name__)

LOGGED = 100
"""Differences of one scrub that are named in the log; all are counted."""
MENDED = 100_000
"""Differences that are mended after one scrub; more are left to the next."""
_RECORD = "scrub.json"


class Scrub:
    """One sender's."""

    def __init__(self, sender: Sender, period: float, rate: int) -> None:
        """`period`: seconds from the end of one to the next; `rate`: bytes of content read each second."""
        self._sender = sender
        self._period = period
        self._rate = rate
        self._record = sender.state.path / _RECORD
        self._last = self._read()
        self._started = 0.0
        self._sweep: Sweep | None = None
        self._mending: Repair | None = None
        self._found: list[Found] = []
        metrics = sender.metrics
        metrics.scrub_period.set(period)
        metrics.scrub_ended.set(self._last["ended"])
        metrics.scrub_duration.set(self._last["seconds"])
        self._counted = (0, 0)

    def turn(self) -> None:
        """Go on, or begin when it is time; to be called now and then."""
        if self._mending is not None:
            self._mending.turn()
        elif self._sweep is not None:
            self._sweep.turn()
            self._count()
        elif self._sender.phases.ready and self._due() <= 0:
            self._begin()

    def status(self) -> dict[str, Any]:
        """What `status` says of it."""
        sweep = self._sweep
        so_far = (
            {"files": sweep.files, "of": len(self._sender.index), "bytes": sweep.bytes} if sweep is not None else None
        )
        return {"period": self._period, "next_in": max(0.0, self._due()), "running": so_far, "last": self._last}

    def _due(self) -> float:
        """Seconds until the next."""
        since = time.time() - self._last["ended"]
        return self._period - since if since >= 0 else 0.0  # the clock was set back

    def _begin(self) -> None:
        log.info("a scrub begins")
        self._started = time.monotonic()
        self._found = []
        self._counted = (0, 0)
        self._sender.metrics.scrub_running.set(1)
        self._sweep = Sweep(self._sender, self._sender.index.members(), self._take, self._compared, rate=self._rate)

    def _count(self) -> None:
        sweep, (files, read) = self._sweep, self._counted
        if sweep is not None:
            self._counted = sweep.files, sweep.bytes
            self._sender.metrics.scrub_files.add(sweep.files - files)
            self._sender.metrics.scrub_bytes.add(sweep.bytes - read)

    def _take(self, found: Found) -> None:
        self._sender.metrics.scrub_findings.add(found.kind)
        if len(self._found) < LOGGED:
            log.error("the replica differs: %s", text(found.tree(self._sender.index)))
        if len(self._found) < MENDED:
            self._found.append(found)

    def _compared(self, _: str | None) -> None:
        self._count()
        if self._found:
            self._mending = Repair(self._sender, self._found, self._mended)
            self._mending.start()
        else:
            self._end(0)

    def _mended(self, left: list[Found], error: str | None) -> None:
        if error is not None:
            log.warning("what the scrub found is mended; that could not be compared: %s", error)
        elif left:
            what = text(left[0].tree(self._sender.index))
            log.error("the replica still differs after %d of %d were mended: %s", len(left), len(self._found), what)
        else:
            log.warning("what the scrub found is mended: %d differences", len(self._found))
        self._end(len(left))

    def _end(self, left: int) -> None:
        sweep = self._sweep
        assert sweep is not None
        seconds = time.monotonic() - self._started
        self._last = {
            "ended": time.time(),
            "seconds": seconds,
            "files": sweep.files,
            "bytes": sweep.bytes,
            "found": len(self._found),
            "left": left,
            "unsettled": sweep.unsettled,
        }
        self._write()
        metrics = self._sender.metrics
        metrics.scrub_ended.set(self._last["ended"])
        metrics.scrub_duration.set(seconds)
        metrics.scrub_unsettled.set(sweep.unsettled)
        log.info("a scrub of %d files took %.0f seconds: %d differences", sweep.files, seconds, len(self._found))
        self._sweep = self._mending = None
        metrics.scrub_running.set(0)

    def _read(self) -> dict[str, Any]:
        """The last one; the first sender that scrubs counts from its start."""
        try:
            last: dict[str, Any] = orjson.loads(self._record.read_bytes())
            return last | {"ended": float(last["ended"]), "seconds": float(last["seconds"])}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("cannot read %s: %s; the next scrub is counted from now on", self._record, error)
        self._last = {"ended": time.time(), "seconds": 0.0}
        self._write()
        return self._last

    def _write(self) -> None:
        """A crash leaves the old or the new one; a disk that takes neither only makes the next scrub earlier."""
        temporary = self._record.with_suffix(".new")
        try:
            temporary.write_bytes(orjson.dumps(self._last))
            os.replace(temporary, self._record)
        except OSError as error:
            log.warning("cannot write %s: %s; free space there", self._record, error.strerror)

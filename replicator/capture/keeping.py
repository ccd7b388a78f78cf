"""Where a sensor's hooks are kept when its process ends, and what of an earlier process may be taken over there.

Takes the set of a state directory, and which mount of the filesystem it is for; says what is there, or why that is of
no use, and puts a program's hooks in its place.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass

from replicator.capture.kept import Build, Signature
from replicator.capture.load import Program
from replicator.capture.probes import remove_events
from replicator.capture.sensor import Watched
from replicator.errors import EnvironmentFault
from replicator.host import boot_id
from replicator.keeper.pins import Pins

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Keeping:
    """One place."""

    pins: Pins
    mounted: str
    """Which mount of the filesystem it is; empty if that is not known: then nothing is taken over."""

    def build(self, source: Watched, sensor: str, programs: str) -> Build:
        """What hooks would be signed with; `programs`: their digest."""
        filesystem = f"{source.fstype} {source.kernel_dev} {self.mounted}"
        return Build(programs, sensor, filesystem, self.pins.state, boot_id())

    def left(self, wanted: Build) -> tuple[Signature | None, str]:
        """What an earlier process left, if it is what is wanted; else why not, empty if nothing is there."""
        signature = self._signature()
        if signature is None:
            return None, ""
        if not self.mounted:
            return None, "it is not known whether the filesystem was unmounted since"
        difference = signature.build.difference(wanted)
        return (None, difference) if difference else (signature, "")

    def keep(self, program: Program, build: Build) -> str:
        """Have these hooks stay in place of what is there. Why they do not; empty if they do."""
        before = self._signature()
        try:
            program.keep(self.pins, build)
        except OSError as fault:
            with contextlib.suppress(OSError):
                self.pins.clear()
            return str(fault)
        try:
            remove_events(() if before is None else before.events)
        except (OSError, EnvironmentFault) as fault:
            _log.warning("%s", fault)
        return ""

    def remove(self) -> None:
        """Remove what is there. OSError, EnvironmentFault."""
        signature = self._signature()
        self.pins.remove()
        if signature is not None:
            remove_events(signature.events)

    def _signature(self) -> Signature | None:
        """That of a whole set, if it is of a version that can be read."""
        data = self.pins.signature()
        try:
            return None if data is None else Signature.load(data)
        except ValueError:
            return None

"""What of the kernel is attached to one source: hooks, the sensor that reads them, and the queue of names.

Takes options and an open source; attaches, or takes over what the sender before has left, and says what the kernel does
not tell here. From then on nothing that changes is missed without `losses()` or the queue saying so; what was dirty
before is on disk. Gives everything back when it is closed: hooks stay for the next sender, unless they must not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack

from replicator import syscalls
from replicator.capture.names import Names
from replicator.capture.probe import limits
from replicator.capture.select import select_sensor
from replicator.capture.sensor import Sensor
from replicator.capture.tracepoint import MODIFY
from replicator.config import SendOptions
from replicator.keeper.hooks import Hooks
from replicator.tree.handles import SourceRoot

log = logging.getLogger(__name__)


class Attachment:
    """Of one sender, which has its state directory locked."""

    def __init__(self, options: SendOptions, source: SourceRoot, unattended: Callable[[], None]) -> None:
        """EnvironmentFault or UsageError if something is missing.

        `unattended` is called as soon as it is known that no hooks are there: there will be a gap.
        """
        with ExitStack() as stack:
            self.hooks = Hooks.open(options.state, source, detach=options.detach_hooks)
            stack.callback(self.hooks.close)
            if not self.hooks.left_behind:
                unattended()
            sensor = select_sensor(
                options.sensor,
                source.fstype,
                ring_bytes=options.ring_bytes,
                lost_inodes=options.lost_inodes,
                keeping=self.hooks.keeping,
            )
            stack.callback(sensor.close)
            sensor.attach(source)
            self.hooks.tell(sensor)
            self.sensor: Sensor = sensor
            coverage = sensor.coverage()
            for limit in limits(source.fstype, coverage, dax=source.dax):
                log.warning("%s", limit)
            for item in coverage:
                if item.refused:
                    log.warning(
                        "%s is not hooked: %s; what others do not tell of it is seen late", item.mechanism, item.reason
                    )
            self.names: Names | None = None
            """None if the sensor tells names."""
            if not sensor.tells_names:
                modify = any(item.mechanism == MODIFY for item in coverage)
                self.names = Names(source, modify=modify, store=self.hooks.store, adopt=sensor.adopted)
                stack.callback(self.names.close)
                self.hooks.tell_names(self.names)
            # Pages that were dirty before the hooks were attached stay silent until they are clean.
            if not sensor.adopted:
                syscalls.syncfs(source.read_fd)
            self.gap = not sensor.adopted or not (self.names is None or self.names.adopted)
            """Whether something may have changed since the sender before, and nobody saw it."""
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Give it back. EnvironmentFault if hooks that must not stay cannot be removed."""
        self._stack.close()

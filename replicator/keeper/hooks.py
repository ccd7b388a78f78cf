"""What a sender leaves in the kernel when it ends, and how that is removed.

Takes a state directory and a source; gives the sensor a place for its programs and the names' queue one for its
descriptors. Where there is no such place the sender goes on without, and says so once.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Self

from replicator.capture.bpf_sensor import BpfSensor
from replicator.capture.keeping import Keeping
from replicator.capture.names import Names
from replicator.errors import EnvironmentFault
from replicator.keeper.bpffs import NotKept
from replicator.keeper.holding import HolderStore
from replicator.keeper.mounted import mounted_as
from replicator.keeper.pins import Busy, Pins, left_behind
from replicator.keeper.store import Store
from replicator.keeper.systemd import SystemdStore, received
from replicator.tree.handles import SourceRoot

log = logging.getLogger(__name__)


class Hooks:
    """Of one sender, which has its state directory locked."""

    def __init__(self, keeping: Keeping | None, store: Store | None, detach: bool) -> None:
        self.keeping = keeping
        """For the sensor; None if its hooks cannot be kept."""
        self.store = store
        """For the names' queue; None if the sensor's hooks cannot be kept, which makes that useless."""
        self._detach = detach
        self._of_use = True
        self._adopted = {"bytes": False, "names": False}

    @classmethod
    def open(
        cls, state: Path, source: SourceRoot, *, detach: bool = False, environ: MutableMapping[str, str] = os.environ
    ) -> Self:
        """Take what the sender before has left, if it has. EnvironmentFault if somebody else has it.

        `detach`: leave nothing to the next one.
        """
        store = _store(state, environ)
        try:
            return cls(Keeping(Pins.open(state), mounted_as(source)), store, detach)
        except Busy as busy:
            raise EnvironmentFault(f"{busy}: end it, and try again") from busy
        except NotKept as reason:
            log.warning("the hooks will end with this process: %s", reason)
            store.drop()
            return cls(None, None, detach)

    @property
    def left_behind(self) -> bool:
        """Whether the sender before has left hooks, of use or not."""
        return self.keeping is not None and self.keeping.pins.signature() is not None

    def tell(self, sensor: BpfSensor) -> None:
        """The sensor is attached."""
        self._of_use = sensor.adopted
        self._adopted = dict.fromkeys(self._adopted, sensor.adopted)
        if sensor.adopted:
            log.info("the hooks of the sender before are taken over: nothing was missed meanwhile")
        elif sensor.not_adopted:
            log.warning("the hooks that a sender left cannot be taken over: %s; all is compared", sensor.not_adopted)
        if sensor.not_kept:
            log.warning("the hooks will end with this process: %s", sensor.not_kept)
        if self.store is not None and (sensor.not_kept or sensor.tells_names):
            self.store.drop()
            self.store = None

    def tell_names(self, names: Names) -> None:
        """The names' queue is listened to."""
        self._adopted["names"] = names.adopted
        if self._adopted["bytes"] and not names.adopted:
            log.warning("the queue of name events that the sender before left is gone: all names are looked at")
        if names.not_kept:
            log.warning("the queue of name events will end with this process: %s", names.not_kept)

    def begun(self) -> None:
        """The sender has come so far that the next one can go on: until then new hooks do not stay."""
        self._of_use = True

    def forsake(self) -> None:
        """What this sender can neither note down nor take back, the next one must not rely on: that begins anew."""
        self._detach = True
        if self.keeping is not None:
            try:
                self.keeping.pins.unsign()
            except OSError as error:
                raise EnvironmentFault(
                    f"cannot remove the hooks in {self.keeping.pins.path}: {error}; unmount it, or reboot, before the "
                    "sender is started again"
                ) from error

    def state(self) -> dict[str, bool]:
        """For `status`: "adopted": nothing was missed since the sender before; "kept": the next one can go on."""
        return {"adopted": all(self._adopted.values()), "kept": self.keeping is not None}

    def close(self) -> None:
        """Leave them, or remove them; the sensor and the queue are closed. EnvironmentFault if that cannot be."""
        if self.keeping is None:
            return
        stay = self._of_use and not self._detach
        try:
            if not stay and self.store is not None:
                self.store.drop()
            if not stay or self.keeping.pins.signature() is None:
                _remove(self.keeping)
        finally:
            self.keeping.pins.close()


def unhook(state: Path) -> None:
    """Remove what a sender that has ended left of a state directory, which may be gone. EnvironmentFault."""
    with _unused(state):
        HolderStore(state).drop()
        try:
            with left_behind(state) as pins:
                if pins is not None:
                    _remove(Keeping(pins, ""))
        except Busy as busy:
            raise EnvironmentFault(f"{busy}: end it, and try again") from busy


def _store(state: Path, environ: MutableMapping[str, str]) -> Store:
    """systemd's, where there is one; else our own. There are never both."""
    own = HolderStore(state)
    address, left = environ.get("NOTIFY_SOCKET"), received(environ)
    if not address:
        return own
    own.drop()
    return SystemdStore(address, left)


def _remove(keeping: Keeping) -> None:
    try:
        keeping.remove()
    except OSError as error:
        raise EnvironmentFault(f"cannot remove the hooks in {keeping.pins.path}: {error}; try again as root") from error


@contextlib.contextmanager
def _unused(state: Path) -> Iterator[None]:
    """Nobody runs on this state directory meanwhile; it is not made."""
    try:
        descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        yield
        return
    except OSError as error:
        raise EnvironmentFault(f"cannot open the state directory {state}: {error.strerror}; run as root") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EnvironmentFault(
                f"a sender is running on {state}, and its hooks are in use: stop it first, or start it with "
                "--detach-hooks"
            ) from None
        yield
    finally:
        os.close(descriptor)

"""The replica as the receiver uses it: opened once, told facts, made durable now and then.

    mirror = Mirror.open(root, state, adopt)     identity, empty, source, instance, durable_epoch, open_epoch
    mirror.begin(source, source_root, instance)
    answer = mirror.apply(facts, payload)        visible when it returns
    job = mirror.start_sync(); job()             `job()` in a worker thread; apply may go on meanwhile
    n = mirror.finish_sync(job)                  durable up to epoch n
    mirror.close()

One thread calls everything but `job()`. Not promised: that `apply` is atomic for a reader of the tree; that an epoch
is durable before finish_sync says so; that times of data files are right before that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import uuid
from dataclasses import replace
from pathlib import Path

from replicator import syscalls
from replicator.errors import EnvironmentFault, RefusedError
from replicator.host import boot_id
from replicator.mirror import root
from replicator.mirror.adopt import adopt
from replicator.mirror.durability import SyncJob
from replicator.mirror.execute import Executor
from replicator.mirror.foreign import Foreign
from replicator.mirror.ground import AstrayError, Ground
from replicator.mirror.inspection import Digest, Entry, Inspection
from replicator.mirror.intents import Intent, IntentLog
from replicator.mirror.inventory import Inventory
from replicator.mirror.limbo import Limbo
from replicator.mirror.payload import Payload, sort_payload
from replicator.mirror.plan import plan
from replicator.mirror.records import forsaken
from replicator.mirror.recover import Recovery
from replicator.mirror.steps import Record
from replicator.mirror.trust import check_facts
from replicator.model import Answer, Facts, FileId, Refusal, Slot


class Mirror:
    """See the module. Made by `open` only."""

    def __init__(
        self, path: Path, state: Path, inventory: Inventory, ground: Ground, intents: IntentLog, state_fd: int
    ) -> None:
        self._path = path
        self._state = state
        self._inventory = inventory
        self._ground = ground
        self._intents = intents
        self._state_fd = state_fd
        self._limbo = Limbo(ground, inventory)
        self._foreign = Foreign(ground, self._limbo, inventory)
        self._inspection = Inspection(ground, self._limbo, inventory, self._foreign)
        self._executor = Executor(ground, self._limbo, inventory, intents)
        self._owed_needs: dict[FileId, None] = {}
        self._owed_looks: dict[Slot, None] = {}
        self._syncing: SyncJob | None = None
        status = os.fstat(ground.root_fd)
        self._where = (status.st_dev, status.st_ino)
        self.identity = inventory.meta("replica") or ""
        self.source = inventory.meta("source")
        self.instance = int(inventory.meta("instance") or 0)
        self.durable_epoch = int(inventory.meta("durable_epoch") or 0)
        self.applied_epoch = self.durable_epoch
        self.open_epoch: int | None = None
        self.trouble: str | None = None
        """Why the last finish_sync made nothing durable; None if it did."""

    @classmethod
    def open(cls, path: Path, state: Path, adopt: bool) -> Mirror:
        """Open a replica, recovering it if it was not closed. `state` is made if it is missing.

        EnvironmentFault: no such root, no file handles, in use, populated without being ours, or not the one it was.
        """
        fd = root.open_root(path)
        try:
            key = root.root_key(fd, path)
            if root.is_within(state, path):
                raise EnvironmentFault(f"the state directory {state} lies inside the replica {path}: name another one")
            state_fd = _open_state(state)
            inventory = Inventory(state / "inventory.sqlite")
        except BaseException:
            os.close(fd)
            raise
        intents = IntentLog(state)
        try:
            known = inventory.meta("root")
            if known != key:
                if known is not None and not adopt:
                    raise EnvironmentFault(
                        f"{path} is not the directory that {state} belongs to (another filesystem is mounted there, or "
                        "none): mount the right one, or start over with --adopt"
                    )
                if not adopt and not root.is_empty(fd):
                    raise EnvironmentFault(
                        f"{path} is not empty and was not made by rsyncfs: pass --adopt to make it the replica; "
                        "what the source does not have will be deleted from it"
                    )
                inventory.clear(root=key, replica=str(uuid.uuid4()), boot=boot_id(), clean="1")
                intents.clear()
            mirror = cls(path, state, inventory, Ground(fd, inventory), intents, state_fd)
            mirror._recover()
        except BaseException:
            intents.close()
            inventory.close()
            os.close(state_fd)
            os.close(fd)
            raise
        return mirror

    @property
    def empty(self) -> bool:
        """Nothing is known and nothing is there: a sender may send all without checks."""
        return self._inventory.is_empty() and root.is_empty(self._ground.root_fd)

    def begin(self, source: str, source_root: FileId, instance: int) -> None:
        """A sender has come. RefusedError if this replica belongs to another source.

        An instance other than the last one does not know what that owed: content in doubt must come whole.
        """
        if self.source is not None and self.source != source:
            raise RefusedError(
                f"the replica {self._path} belongs to another source: take an empty root and another state directory"
            )
        if self.source is None or instance != self.instance or source_root != self._inventory.root:
            if self.source is not None and source_root != self._inventory.root:
                raise RefusedError(f"the source of {self._path} has another root directory now: was it mounted?")
            for id, record in self._inventory.unsound():
                self._inventory.put(id, forsaken(record))
            self.source, self.instance = source, instance
            self.durable_epoch = self.applied_epoch = 0
            self._set_root(source_root)
            self._inventory.set_meta(
                source=source, source_root=source_root.text(), instance=str(instance), durable_epoch="0"
            )

    def apply(self, facts: Facts, payload: Payload) -> Answer:
        """Carry out one epoch. RemoteError, with nothing changed, if facts or payload are impossible."""
        check_facts(facts, self._inventory)
        pieces = sort_payload(facts, payload)
        needs, looks = self._owed_needs, self._owed_looks
        self._owed_needs, self._owed_looks = {}, {}
        adopt(facts, self._ground, self._inventory)
        refused: list[Refusal] = []
        for fact in facts.slots:
            bound = self._inventory.bound(fact.slot)
            if fact.id is not None and bound == fact.id:
                self._executor.verify_bound(fact.slot, fact.id, needs, looks)
            elif fact.id is None and bound is None:
                refused += self._verify_empty(fact.slot)
        planned = plan(facts, self._inventory)
        planned.needs = {**needs, **planned.needs}
        planned.looks = {**looks, **planned.looks}
        answer = self._executor.run(facts, pieces, planned)
        self.applied_epoch = self.open_epoch = facts.epoch
        return replace(answer, refusals=(*answer.refusals, *refused)) if refused else answer

    def start_sync(self) -> SyncJob:
        """Begin to make everything applied so far durable. Only one at a time."""
        assert self._syncing is None
        self._inventory.freeze()
        with contextlib.suppress(OSError):  # then the lines stay a cycle longer, which only costs a recovery some looks
            self._intents.turn()
        self._syncing = SyncJob(self._ground.root_fd, self.instance, self.applied_epoch)
        return self._syncing

    def finish_sync(self, job: SyncJob) -> int:
        """End what start_sync began, after `job()` has returned: set times, commit. The last durable epoch.

        If the disk (then what may have been lost is asked for in the next answer) or the state directory failed, that
        is as it was before; `job.error` and `trouble` say why.
        """
        assert job is self._syncing
        self._syncing = None
        if job.error is not None:
            for id, _ in self._inventory.times():
                record = self._inventory.record(id)
                if record is not None:
                    self._inventory.put(id, Record(record.kind, record.size, complete=False, suspect=True))
                    self._owed_needs[id] = None
            self._inventory.thaw()
            self.trouble = f"{self._path} cannot be synced: {job.error.strerror}"
            return self.durable_epoch
        self._set_times()
        self._executor.rest()
        current = job.instance == self.instance
        epoch = job.epoch if current else self.durable_epoch
        try:
            self._inventory.commit(durable_epoch=str(epoch))
        except sqlite3.OperationalError as error:
            self._inventory.thaw()
            self.trouble = f"the inventory in {self._state} cannot be written: {error}"
            job.error = OSError(errno.EIO, self.trouble)
            return self.durable_epoch
        self.trouble = None
        self._intents.settle()
        self.durable_epoch = epoch
        if self.open_epoch is not None and current and self.open_epoch <= epoch:
            self.open_epoch = None
        return epoch

    def still_there(self) -> bool:
        """Whether the root's path still leads to the same directory of the same filesystem."""
        try:
            status = os.stat(self._path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._where

    def knows(self, id: FileId) -> bool:
        """Whether the replica has it, in whatever state."""
        return self._inventory.record(id) is not None

    def list_directory(self, id: FileId) -> list[Entry]:
        """The names really in a known directory, without what is the replica's own. OSError, KeyError if unknown."""
        return self._inspection.list_directory(id)

    def digest(self, id: FileId) -> Digest:
        """What the replica really has of an inode; reads all of it. OSError, KeyError if it is not there."""
        return self._inspection.digest(id)

    def names(self, id: FileId) -> list[bytes]:
        """All names in a known directory, on disk or in the inventory, sorted. OSError, KeyError."""
        return self._inspection.names(id)

    def nameless(self, most: int) -> list[FileId]:
        """Up to `most` inodes that are kept without a name of the user's."""
        return self._inspection.nameless(most)

    def extra_names(self, id: FileId) -> list[bytes]:
        """Names in a known directory that only the replica has. OSError, KeyError."""
        return self._inspection.extra_names(id)

    def remove_extra(self, id: FileId, name: bytes) -> str | None:
        """Remove such a name with all that is beneath it; nothing that is known is destroyed. Why not, if not."""
        place = Slot(id, name)
        if self._inventory.bound(place) is not None or self._inventory.record(id) is None or self._is_ours(place):
            return None
        try:
            self._intents.append(Intent(0, [place]))
            self._foreign.purge_place(place)
            self._executor.stamp(id)
        except (OSError, AstrayError) as error:
            return f"cannot remove {os.fsdecode(name)!r}: {error}"
        return None

    def _is_ours(self, place: Slot) -> bool:
        """Not the source's to speak of: limbo, and what a filesystem has in its root."""
        return place == self._limbo.place or place == Slot(self._inventory.root, b"lost+found")

    def _verify_empty(self, place: Slot) -> list[Refusal]:
        """A name that source and inventory do not have: what an epoch left there that a power cut undid goes."""
        try:
            if self._inventory.record(place.parent) is None or self._ground.at(place) is None:
                return []
        except (OSError, AstrayError):
            return []  # whatever is wrong with the directory is found when something is done in it
        error = self.remove_extra(place.parent, place.name)
        return [] if error is None else [Refusal(place.parent, error)]

    def close(self) -> None:
        """Make durable what can be, and let everything go."""
        if self._syncing is None:
            job = self.start_sync()
            job()
            with contextlib.suppress(Exception):
                self.finish_sync(job)
                if job.error is None:
                    self._inventory.set_meta(clean="1")
        self.abandon()

    def abandon(self) -> None:
        """Let everything go as a crash would."""
        self._limbo.close()
        self._ground.close()
        self._intents.close()
        self._inventory.close()
        os.close(self._state_fd)

    def _recover(self) -> None:
        stored = self._inventory.meta("source_root")
        if stored is not None:
            self._set_root(FileId.parse(stored))
            intents = self._intents.read()
            rebooted = self._inventory.meta("boot") != boot_id() and self._inventory.meta("clean") != "1"
            recovery = Recovery(self._ground, self._limbo, self._inventory, intents)
            if rebooted:
                recovery.after_power_cut()
            else:
                if intents:  # nobody knows any more which bytes are not on the disk: now all are
                    with contextlib.suppress(OSError):  # the next durable cycle says so
                        syscalls.syncfs(self._ground.root_fd)
                recovery.after_kill()
            for directory in recovery.disturbed():
                with contextlib.suppress(OSError, AstrayError):
                    self._executor.stamp(directory)
            self._executor.rest()
            self._inventory.commit()
            for id, mtime_ns in recovery.owed_times():
                self._inventory.owe_time(id, mtime_ns)
            self.open_epoch = max((intent.epoch for intent in intents), default=None)
        self._intents.clear()
        self._inventory.set_meta(boot=boot_id(), clean="0")

    def _set_root(self, source_root: FileId) -> None:
        self._inventory.set_root(source_root, self._ground.root_handle())

    def _set_times(self) -> None:
        for id, mtime_ns in self._inventory.times():
            # What is not where it was is asked for when the next fact about it comes.
            with contextlib.suppress(OSError, AstrayError):
                for place in self._inventory.places(id):
                    if self._ground.holds(place, id):
                        fd = self._ground.directory(place.parent)
                        syscalls.utimens(fd, place.name, None, mtime_ns, syscalls.AT_SYMLINK_NOFOLLOW)
                        break


def _open_state(state: Path) -> int:
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise EnvironmentFault(f"the state directory {state} cannot be used: {error.strerror}") from None
    root.lock(fd, f"the state directory {state}")
    return fd

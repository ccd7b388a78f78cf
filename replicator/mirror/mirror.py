"""The replica as the receiver uses it: opened once, told facts, made durable now and then.

    mirror = Mirror.open(root, state, adopt)     identity, empty, source, instance, durable_epoch, open_epoch
    mirror.begin(source, source_root, instance)
    answer = mirror.apply(facts, payload)        visible when it returns
    job = mirror.start_sync(); job()             `job()` in a worker thread; apply may go on meanwhile
    rest = mirror.seal(job); rest()              `rest()` in a worker thread, too; may be left out
    n, lost = mirror.finish_sync(job)            durable up to epoch n, but for the files that are lost
    mirror.inspection                            what the disk really has, for comparisons
    mirror.mended()                              the sender owes nothing of before its session any more
    mirror.close()

One thread calls everything but `job()` and `rest()`. Not promised: that `apply` is atomic for a reader of the tree;
that an epoch is durable before finish_sync says so; that times of data files are right before that.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from replicator import syscalls
from replicator.errors import EnvironmentFault, RefusedError
from replicator.host import boot_id, is_within
from replicator.mirror import attributes, root, witness
from replicator.mirror.adopt import adopt
from replicator.mirror.durability import SyncJob
from replicator.mirror.execute import Executor
from replicator.mirror.foreign import Foreign
from replicator.mirror.ground import AstrayError, Ground
from replicator.mirror.inspection import Inspection
from replicator.mirror.intents import Intent, IntentLog
from replicator.mirror.inventory import Inventory
from replicator.mirror.limbo import Limbo
from replicator.mirror.payload import Payload, sort_payload
from replicator.mirror.plan import plan
from replicator.mirror.records import forsaken
from replicator.mirror.recover import Recovery
from replicator.mirror.trust import check_facts
from replicator.model import Answer, Facts, FileId, Kind, Refusal, Slot

log = logging.getLogger(__name__)


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
        self.inspection = Inspection(ground, self._limbo, inventory, self._foreign)
        """What the disk really has."""
        self._executor = Executor(ground, self._limbo, inventory, intents)
        self._witnesses: dict[str, str] = {}
        self._lost: dict[FileId, str] = {}
        """What is to be sent again although it was made durable, and why; to be told with the epoch."""
        self._syncing: SyncJob | None = None
        self._sealed = False
        """Whether what became of the sync is taken."""
        status = os.fstat(ground.root_fd)
        self._where = (status.st_dev, status.st_ino)
        self.identity = inventory.meta("replica") or ""
        self.source = inventory.meta("source")
        self.instance = int(inventory.meta("instance") or 0)
        self.durable_epoch = int(inventory.meta("durable_epoch") or 0)
        self.applied_epoch = self.durable_epoch
        self._open: int | None = None
        self._torn = int(inventory.meta("torn") or 0)
        self.trouble: str | None = None
        """Why the last finish_sync made nothing durable; None if it did."""

    @classmethod
    def open(cls, path: Path, state: Path, adopt: bool) -> Mirror:
        """Open a replica, recovering it if it was not closed. `state` is made if it is missing.

        EnvironmentFault: no such root, no file handles, in use, populated without being ours, not the one it was, or a
        state directory that cannot be written.
        """
        try:
            return cls._opened(path, state, adopt)
        except sqlite3.Error as error:
            raise EnvironmentFault(
                f"the inventory in {state} cannot be used: {error}; free space there, or if it is damaged, remove the"
                " directory and start with --adopt, which compares everything"
            ) from error

    @classmethod
    def _opened(cls, path: Path, state: Path, adopt: bool) -> Mirror:
        fd = root.open_root(path)
        try:
            key = root.root_key(fd, path)
            if is_within(state, path):
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
        except BaseException:
            intents.close()
            inventory.close()
            os.close(state_fd)
            os.close(fd)
            raise
        try:
            mirror._recover()
        except BaseException:
            mirror.abandon()
            raise
        return mirror

    @property
    def open_epoch(self) -> int | None:
        """The newest epoch of which the replica may have only a part, or have it only until a power cut; else None."""
        return max(self._open or 0, self._torn) or None

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
            if self._open is not None:  # who was to make it durable has gone
                self._tear(max(self._open, self._torn))
                self._open = None
            self.source, self.instance = source, instance
            self.durable_epoch = self.applied_epoch = 0
            self._set_root(source_root)
            self._inventory.set_meta(
                source=source, source_root=source_root.text(), instance=str(instance), durable_epoch="0"
            )

    def apply(self, facts: Facts, payload: Payload) -> Answer:
        """Carry out one epoch. RemoteError, with nothing changed, if facts or payload are impossible."""
        self._inventory.foresee([fact.id for fact in facts.inodes], [fact.slot for fact in facts.slots])
        check_facts(facts, self._inventory)
        pieces = sort_payload(facts, payload)
        needs: dict[FileId, None] = {}
        looks: dict[Slot, None] = {}
        adopt(facts, self._ground, self._inventory)
        for fact in facts.slots:
            if fact.id is not None and self._inventory.bound(fact.slot) == fact.id:
                self._executor.verify_bound(fact.slot, fact.id, needs, looks)
        planned = plan(facts, self._inventory, checked=True)
        planned.needs = {**needs, **planned.needs}
        planned.looks = {**looks, **planned.looks}
        answer = self._remove_foreign(facts, self._executor.run(facts, pieces, planned))
        self.applied_epoch = self._open = facts.epoch
        return answer

    def _remove_foreign(self, facts: Facts, answer: Answer) -> Answer:
        """Where the source has nothing, nothing may be: not what a crash left, nor what somebody else made."""
        refusals, looks = list(answer.refusals), list(answer.looks)
        for slot in (fact.slot for fact in facts.slots if fact.id is None):
            reason = self.remove_extra(slot.parent, slot.name)
            if reason is not None:
                refusals.append(Refusal(slot.parent, reason))
                looks.append(slot)
        return replace(answer, refusals=tuple(refusals), looks=tuple(looks))

    def start_sync(self) -> SyncJob:
        """Begin to make everything applied so far durable. Only one at a time."""
        assert self._syncing is None
        inventory = self._inventory
        inventory.freeze()
        written = [(id, inventory.handle(id)) for id in inventory.written()]
        times = [(id, inventory.handle(id), ns) for id, ns, _ in inventory.times() if inventory.record(id) is not None]
        self._witnesses.update(witness.note(inventory, self._ground.root_fd))
        self._syncing = SyncJob(
            self._ground.root_fd, self._intents.fileno(), self.instance, self.applied_epoch, written, times
        )
        with contextlib.suppress(OSError):  # then the lines stay a cycle longer, which only costs a recovery some looks
            self._intents.turn()
        return self._syncing

    def seal(self, job: SyncJob) -> Callable[[], None] | None:
        """After `job()` has returned: take what became of it. Returns what is left to do, in any thread, before
        `finish_sync`: it waits for the disk. None if the job failed."""
        assert job is self._syncing
        if job.error is not None:
            return None
        self._sealed = True
        self._lost.update((id, f"sync: {error.strerror}") for id, error in job.lost.items())
        self._set_other_times(job)
        for id in self._lost:
            self._inventory.doubt(id)
        self._executor.rest()
        witnesses = dict(self._witnesses)
        return lambda: self._commit(job, witnesses)

    def _commit(self, job: SyncJob, witnesses: dict[str, str]) -> None:
        def meta() -> dict[str, str]:  # another sender may have come
            epoch = job.epoch if job.instance == self.instance else self.durable_epoch
            return {"durable_epoch": str(epoch), "torn": str(self._torn), **witnesses}

        try:
            self._inventory.write(meta)
        except sqlite3.OperationalError as error:
            job.error = OSError(errno.EIO, f"the inventory in {self._state} cannot be written: {error}")
        else:
            self._intents.settle()

    def finish_sync(self, job: SyncJob) -> tuple[int, tuple[Refusal, ...]]:
        """End what start_sync began, after `job()` has returned, and what `seal` returned, if that was called.

        The last durable epoch, and what is not durable although its epoch is: all of that must come once more, and be
        known to be owed before the epoch is called durable. If the disk or the state directory failed, the epoch is
        what it was; `job.error` and `trouble` say why. If it was the disk, nothing that was applied and is not durable
        can be relied on: it must be sent again before anything is durable.
        """
        assert job is self._syncing
        if not self._sealed:
            commit = self.seal(job)
            if commit is not None:
                commit()
        self._syncing, self._sealed = None, False
        if job.failed:
            assert job.error is not None
            for id in self._inventory.written():
                self._inventory.doubt(id)
            self._inventory.thaw()
            self._tear(self.applied_epoch)
            self.applied_epoch = self.durable_epoch
            self.trouble = f"{self._path} cannot be synced: {job.error.strerror}"
            return self.durable_epoch, ()
        if job.error is not None:
            self._inventory.thaw()
            self.trouble = str(job.error.strerror)
            return self.durable_epoch, ()
        self._inventory.written_down()
        self.trouble = None
        current = job.instance == self.instance
        epoch = job.epoch if current else self.durable_epoch
        self.durable_epoch = epoch
        if self._open is not None and current and self._open <= epoch:
            self._open = None
        lost, self._lost = self._lost, {}
        known = self._inventory.record
        return epoch, tuple(Refusal(id, reason) for id, reason in lost.items() if known(id) is not None)

    def mended(self) -> None:
        """What a crash may have torn was sent again, and is durable."""
        if self._torn:
            self._tear(0)

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

    def by_handle(self, handle: bytes) -> FileId | None:
        """Which inode of the source one of the replica's is; None if it is foreign."""
        return self._inventory.by_handle(handle)

    def remove_extra(self, id: FileId, name: bytes) -> str | None:
        """Remove such a name with all that is beneath it; nothing that is known is destroyed. Why not, if not."""
        place = Slot(id, name)
        if self._inventory.bound(place) is not None or self._inventory.record(id) is None or self._is_ours(place):
            return None
        try:
            if self._ground.at(place) is None:
                return None
            self._intents.append(Intent(0, [place]))
            self._foreign.purge_place(place)
            self._executor.stamp(id)
        except (OSError, AstrayError) as error:
            return f"cannot remove {os.fsdecode(name)!r}: {error}"
        return None

    def _is_ours(self, place: Slot) -> bool:
        """Not the source's to speak of: limbo, and what a filesystem has in its root."""
        return place == self._limbo.place or place == Slot(self._inventory.root, b"lost+found")

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
            written = False
            if witness.reverted(self._inventory, self._ground.root_fd):
                log.warning("%s was set back to an older state: it must be compared with the source", self._path)
                recovery.after_revert()
                self._torn = max(self._torn, self.durable_epoch, 1)
                self.instance = self.durable_epoch = self.applied_epoch = 0
                self._inventory.set_meta(instance="0", durable_epoch="0", torn=str(self._torn), witnesses="{}")
            else:
                torn = max((intent.epoch for intent in intents if intent.epoch > self.durable_epoch), default=0)
                if not rebooted:
                    if intents:  # nobody knows any more which bytes are not on the disk: now all are
                        with contextlib.suppress(OSError):  # all that is not durable is sent and written once more
                            syscalls.syncfs(self._ground.root_fd)
                            written = True
                    recovery.after_kill()
                elif recovery.after_power_cut():
                    torn = max(torn, self.durable_epoch + 1)
                self._torn = max(torn, self._torn)
            for directory in recovery.disturbed():
                with contextlib.suppress(OSError, AstrayError):
                    self._executor.stamp(directory)
            self._executor.rest()
            self._inventory.commit(torn=str(self._torn))
            self._give_times(recovery.owed_times(), at_once=written)
        self._intents.clear()
        self._inventory.set_meta(boot=boot_id(), clean="0")

    def _give_times(self, owed: Iterable[tuple[FileId, int]], *, at_once: bool) -> None:
        """To files that a predecessor made. `at_once`: their bytes are on the disk; else with the next sync, which a
        successor of ours would know nothing of."""
        for id, mtime_ns in owed:
            if at_once:
                with contextlib.suppress(OSError, AstrayError):
                    self._set_time(id, mtime_ns, sync=False)
                    continue
            self._inventory.wrote(id)
            self._inventory.owe_time(id, mtime_ns)

    def _set_root(self, source_root: FileId) -> None:
        self._inventory.set_root(source_root, self._ground.root_handle())

    def _set_other_times(self, job: SyncJob) -> None:
        """Of what could not be opened by handle (that takes a privilege), is another inode by now, or was written
        since. The bytes of that are not synced: the time that is to be theirs must not stand over them, but an older
        one may, and who writes without a pause would never see any time set."""
        done = {id: handle for id, handle, _ in job.times if id not in job.late}
        for id, mtime_ns, later in self._inventory.times():
            if id in self._lost or self._inventory.record(id) is None:
                continue
            if later is None and done.get(id) == self._inventory.handle(id):
                continue
            try:
                self._set_time(id, mtime_ns, sync=later == mtime_ns)
            except AstrayError:
                self._lost[id] = "time: it is not where it was"
            except OSError as error:
                self._lost[id] = f"time: {error.strerror}"

    def _set_time(self, id: FileId, mtime_ns: int, *, sync: bool) -> None:
        record = self._inventory.record(id)
        if record is not None and record.kind is Kind.DIRECTORY:
            attributes.set_time(self._ground.directory(id), mtime_ns)
            return
        fd = self._ground.open(id, os.O_RDONLY if sync else os.O_PATH)
        try:
            if sync:
                os.fsync(fd)
            attributes.set_time(fd, mtime_ns)
        finally:
            os.close(fd)

    def _tear(self, epoch: int) -> None:
        self._torn = epoch
        with contextlib.suppress(sqlite3.OperationalError):  # the next commit says it, too
            self._inventory.set_meta(torn=str(epoch))


def _open_state(state: Path) -> int:
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise EnvironmentFault(f"the state directory {state} cannot be used: {error.strerror}") from None
    root.lock(fd, f"the state directory {state}")
    return fd

"""After a crash: the inventory is made to say what the disk has.

When only the process died, the intent log names every place that may have changed, and only these (and limbo) are
looked at. After a crash of the machine neither log nor rows can be trusted about what came last, so the whole tree is
walked, and what lies in limbo. Inodes are recognised by the replica's own file handles, never by name. Nothing in the
tree is changed, but that what is known leaves a directory that nobody knows, for limbo; there, what nobody knows is
purged.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import replace

from replicator import syscalls
from replicator.mirror import attributes
from replicator.mirror.foreign import Foreign
from replicator.mirror.ground import Ground, handle_of, open_beneath, open_handle
from replicator.mirror.intents import Intent
from replicator.mirror.inventory import Inventory
from replicator.mirror.limbo import Limbo
from replicator.mirror.records import lost
from replicator.mirror.steps import LIMBO, Record, limbo_place
from replicator.model import FileId, Kind, Slot


class Recovery:
    """One recovery; call `after_kill` or `after_power_cut`, then commit the inventory."""

    def __init__(self, ground: Ground, limbo: Limbo, inventory: Inventory, intents: list[Intent]) -> None:
        self._ground = ground
        self._limbo = limbo
        self._inventory = inventory
        self._intents = intents
        self._made: dict[bytes, tuple[FileId, Record]] = {}
        for intent in intents:
            for id, handle, record in intent.made:
                self._made[handle] = (id, record)
        self._handles = {id: handle for handle, (id, _) in self._made.items()}
        self._affected: dict[FileId, None] = {}
        self._differs = False
        self._reverted = False

    def after_kill(self) -> None:
        """Look at every place that an open epoch mentions."""
        places = dict.fromkeys(place for intent in self._intents for place in intent.places)
        for place in places:
            if place.parent != LIMBO:
                self._set(place, self._found(place))
        self._look_into_limbo()
        self._finish()

    def after_power_cut(self) -> bool:
        """Look at everything. Whether the disk had anything else than the inventory: part of an epoch, then."""
        inventory, ground = self._inventory, self._ground
        self._limbo.find()
        limbo = None if ground.limbo_fd is None else handle_of(ground.limbo_fd, b"")
        found: list[tuple[Slot, FileId]] = []
        gone: list[Slot] = []
        entered = {inventory.root}
        queue: list[tuple[FileId | None, int]] = []
        try:
            for top, at in ((inventory.root, ground.root_fd), (LIMBO, ground.limbo_fd)):
                if at is not None:
                    queue.append((top, open_beneath(at, b".", os.O_RDONLY | os.O_DIRECTORY)))
            while queue:
                directory, fd = queue.pop()
                if directory is None or directory == LIMBO:
                    known = {}
                else:
                    known = inventory.entries(directory)  # of millions, nearly all are where they were
                kept: set[bytes] = set()
                try:
                    for name in map(os.fsencode, os.listdir(fd)):
                        handle = handle_of(fd, name)
                        if handle is None or handle == limbo:
                            continue
                        id, record = self._recognise(handle, known.get(name))
                        if id is None or record is None:
                            if directory != LIMBO:
                                self._differs = (
                                    self._differs or directory is None or not self._is_private(directory, name)
                                )
                            self._enter_unknown(fd, name, queue)
                            continue
                        if record.kind is Kind.DIRECTORY and id not in entered:
                            entered.add(id)
                            queue.append((id, open_beneath(fd, name, os.O_RDONLY | os.O_DIRECTORY)))
                        elif record.kind is Kind.FILE:
                            self._compare(fd, name, id, record)
                        if directory is None:
                            self._rescue(fd, name, id)
                        elif name in known and known[name][0] == id:
                            kept.add(name)
                        elif directory != LIMBO:
                            found.append((Slot(directory, name), id))
                finally:
                    os.close(fd)
                if directory is not None:
                    gone += [Slot(directory, name) for name in known if name not in kept]
        finally:
            for _, left in queue:
                os.close(left)
        for lost_directory in set(inventory.parents()) - entered - {LIMBO}:
            gone += [Slot(lost_directory, name) for name, _ in inventory.children(lost_directory)]
        for place in gone:
            self._set(place, None)
        for place, id in found:
            self._set(place, id)
            self._affected[id] = None
        self._differs = self._differs or bool(gone or found)
        self._look_into_limbo()
        self._finish()
        return self._differs

    def after_revert(self) -> None:
        """Look at everything; what is not as the inventory says was durable once, so nobody owes it any more."""
        self._reverted = True
        self._intents = []
        self.after_power_cut()

    @staticmethod
    def _enter_unknown(fd: int, name: bytes, queue: list[tuple[FileId | None, int]]) -> None:
        """An epoch that is not durable may have made a directory and moved into it what is."""
        if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            with contextlib.suppress(OSError):  # another filesystem is mounted there
                queue.append((None, open_beneath(fd, name, os.O_RDONLY | os.O_DIRECTORY)))

    def _rescue(self, fd: int, name: bytes, id: FileId) -> None:
        """Away from where it would be purged; if it has other names, limbo lets it go again."""
        self._limbo.ensure()
        with contextlib.suppress(FileExistsError):
            syscalls.renameat2(fd, name, self._ground.directory(LIMBO), limbo_place(id).name, syscalls.RENAME_NOREPLACE)

    def disturbed(self) -> list[FileId]:
        """The directories whose modification times may be the crash's instead of the source's."""
        places = [place for intent in self._intents for place in intent.places]
        ids = {self._inventory.root, *(place.parent for place in places)}
        ids.update(id for id in map(self._inventory.bound, places) if id is not None)
        records = ((id, self._inventory.record(id)) for id in ids)
        return [id for id, record in records if record is not None and record.kind is Kind.DIRECTORY]

    def owed_times(self) -> list[tuple[FileId, int]]:
        """The times of new files whose data is not durable yet."""
        found = []
        for id, _ in self._made.values():
            record = self._inventory.record(id)
            if record is not None and record.kind is Kind.FILE and record.mtime_ns != -1:
                found.append((id, record.mtime_ns))
        return found

    def _is_private(self, directory: FileId, name: bytes) -> bool:
        """Whether that name is limbo's, or the filesystem's own."""
        return directory == self._inventory.root and (name == b"lost+found" or name in self._limbo.candidates)

    def _recognise(
        self, handle: bytes, known: tuple[FileId, Record, bytes] | None
    ) -> tuple[FileId | None, Record | None]:
        """Which inode it is that was found where `known` should be."""
        if known is not None and known[2] == handle and handle not in self._made:
            return known[0], known[1]
        id = self._identify(handle)
        return id, None if id is None else self._inventory.record(id)

    def _identify(self, handle: bytes) -> FileId | None:
        """Which id an inode found on disk is; one that an open epoch made enters the inventory."""
        made = self._made.get(handle)
        if made is None:
            return self._inventory.by_handle(handle)
        id, record = made
        known = self._inventory.record(id)
        if known is None or self._inventory.handle(id) != handle:
            self._inventory.put(id, record, handle)
        self._affected[id] = None
        return id

    def _found(self, place: Slot) -> FileId | None:
        handle = self._handles.get(place.parent)
        if handle is None and self._inventory.record(place.parent) is not None:
            handle = self._inventory.handle(place.parent)
        if handle is None:
            return None
        try:
            fd = self._open_directory(handle)
        except OSError:
            return None
        try:
            found = handle_of(fd, place.name)
        finally:
            os.close(fd)
        return None if found is None else self._identify(found)

    def _open_directory(self, handle: bytes) -> int:
        return open_handle(self._ground.root_fd, handle, os.O_PATH | os.O_DIRECTORY)

    def _set(self, place: Slot, id: FileId | None) -> None:
        before = self._inventory.bound(place)
        if before is not None:
            self._affected[before] = None
        if id is None:
            self._inventory.unbind(place, keep=True)
        else:
            self._inventory.bind(place, id)

    def _look_into_limbo(self) -> None:
        inventory = self._inventory
        self._limbo.find()
        for name, waited in list(inventory.children(LIMBO)):
            self._affected[waited] = None
            inventory.unbind(Slot(LIMBO, name), keep=True)
        foreign = Foreign(self._ground, self._limbo, inventory)
        unknown: list[bytes] = []
        for name in self._limbo.listing():
            fd = self._ground.directory(LIMBO)
            handle = handle_of(fd, name)
            id = None if handle is None else self._identify(handle)
            if id is None:
                unknown.append(name)
                continue
            self._affected[id] = None
            waiting = limbo_place(id)
            record = inventory.record(id)
            named = any(place.parent != LIMBO for place in inventory.places(id))
            directory = record is not None and record.kind is Kind.DIRECTORY
            if (named or inventory.bound(waiting) is not None) and not directory:
                os.unlink(name, dir_fd=fd)
                continue
            if name != waiting.name:
                if handle_of(fd, waiting.name) is None:
                    syscalls.renameat2(fd, name, fd, waiting.name, syscalls.RENAME_NOREPLACE)
                else:
                    syscalls.renameat2(fd, name, fd, waiting.name, syscalls.RENAME_EXCHANGE)
                    unknown.append(name)
            inventory.bind(waiting, id)
        for name in unknown:
            foreign.purge(self._ground.directory(LIMBO), name)

    def _compare(self, fd: int, name: bytes, id: FileId, record: Record) -> None:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if status.st_size == record.size and status.st_mtime_ns == record.mtime_ns:
            return
        if record.sound:
            self._differs = True
            if self._reverted:
                self._inventory.put(id, lost(record))
                return
            self._inventory.put(id, replace(record, suspect=True))
        if record.complete and status.st_size == record.size and record.mtime_ns != -1:
            # Times are set after the data is synced, not synced themselves; nor were those that a recovery set.
            entry = open_beneath(fd, name, os.O_PATH)
            try:
                attributes.set_time(entry, record.mtime_ns)
            finally:
                os.close(entry)

    def _finish(self) -> None:
        inventory = self._inventory
        for intent in self._intents:
            for id in intent.touched:
                record = inventory.record(id)
                if record is not None and record.complete:
                    inventory.put(id, replace(record, suspect=True))
        for intent in self._intents:
            for place in intent.places:
                if place.parent != LIMBO and inventory.record(place.parent) is None:
                    self._set(place, None)
        queue = list(self._affected)
        while queue:
            id = queue.pop()
            if inventory.record(id) is None or id == inventory.root or inventory.places(id):
                continue
            for name, child in list(inventory.children(id)):
                inventory.unbind(Slot(id, name), keep=True)
                queue.append(child)
            inventory.forget(id)

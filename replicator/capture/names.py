"""Where names and attributes changed, from fanotify: which slots and inodes to look at again.

Takes a SourceRoot; gives looks for its whole filesystem, also for what lies outside the tree. A look never says what
happened: the kernel merges events of one process into the oldest of them, so their order and number mean nothing.

Silent here: times set by utimensat alone and truncation (told with FAN_MODIFY, as is each write then),
capabilities stripped by a write, chattr, O_TMPFILE until it is linked, and everything inside a btrfs snapshot at the
moment it is made (only its root is seen).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Final, NamedTuple, Self

from replicator import syscalls
from replicator.capture.marks import mark, marked, refusal
from replicator.capture.scratch import SCRATCH_BYTES, Scratch
from replicator.keeper.store import Store
from replicator.model import FileId, Slot
from replicator.tree.handles import SourceRoot

NAME_EVENTS: Final = syscalls.FAN_CREATE | syscalls.FAN_DELETE | syscalls.FAN_RENAME
EVENTS: Final = NAME_EVENTS | syscalls.FAN_ATTRIB | syscalls.FAN_ONDIR

QUEUE, SCRATCH = "names", "scratch"
"""What they are called in a store."""

_METADATA: Final = struct.Struct("=IBBHQii")  # event_len, version, reserved, metadata_len, mask, fd, pid
_INFO: Final = struct.Struct("=BBH")  # type, padding, length
_HANDLE: Final = struct.Struct("=Ii")  # length, type
_HANDLE_AT: Final = _INFO.size + 8  # the fsid in between is that of the mark
_DATA_AT: Final = _HANDLE_AT + _HANDLE.size
_METADATA_VERSION: Final = 3

_TARGET, _DIRECTORY_NAME, _DIRECTORY, _OLD_NAME, _NEW_NAME = 1, 2, 3, 10, 12


class SlotLook(NamedTuple):
    """Look at what this name means now. `target` is an inode that the name meant at some time lately, if known."""

    slot: Slot
    target: FileId | None


class InodeLook(NamedTuple):
    """Look at the attributes of this inode."""

    id: FileId


class MovedLook(NamedTuple):
    """Look at every name that this inode is known to have: it has another now."""

    id: FileId


class ListLook(NamedTuple):
    """Look at every name in this directory."""

    id: FileId


class Overflow(NamedTuple):
    """The kernel dropped events, or sent what cannot be read: look at every directory."""


Look = SlotLook | InodeLook | MovedLook | ListLook | Overflow


class Batch(NamedTuple):
    """What some bytes from the kernel said."""

    looks: list[Look]
    """Each once, in the order of first mention."""
    events: int


def parse(data: bytes, id_of_handle: Callable[[int, bytes], FileId]) -> Batch:
    """Read whole fanotify events. What cannot be understood becomes an Overflow; unknown additions are skipped.

    `id_of_handle` makes identities of (type, handle), or raises ValueError.
    """
    looks: dict[Look, None] = {}
    ids: dict[bytes, FileId] = {}  # by the handle's bytes with its header: the same directories come again and again
    unpack_metadata, unpack_info, unpack_handle = _METADATA.unpack_from, _INFO.unpack_from, _HANDLE.unpack_from
    events, at, total = 0, 0, len(data)
    while at < total:
        try:
            event_length, version, _, metadata_length, mask, _, _ = unpack_metadata(data, at)
            end = at + event_length
            info = at + metadata_length
            if version != _METADATA_VERSION or info < at + _METADATA.size or not info <= end <= total:
                raise ValueError("not a fanotify event")
        except (struct.error, ValueError):
            # Where the next event starts is unknown, so all that follows is lost with this one.
            looks[Overflow()] = None
            events += 1
            break
        events += 1
        at = end
        target: FileId | None = None
        slots: list[Slot] = []
        directory: FileId | None = None
        try:
            while info < end:
                kind, _, length = unpack_info(data, info)
                next_info = info + length
                if length < _INFO.size or next_info > end:
                    raise ValueError("a cut fanotify record")
                if kind in (_TARGET, _DIRECTORY_NAME, _DIRECTORY, _OLD_NAME, _NEW_NAME):
                    handle_length, handle_type = unpack_handle(data, info + _HANDLE_AT)
                    data_end = info + _DATA_AT + handle_length
                    if data_end > next_info:
                        raise ValueError("a cut file handle")
                    key = data[info + _HANDLE_AT : data_end]
                    id = ids.get(key)
                    if id is None:
                        id = ids[key] = id_of_handle(handle_type, key[_HANDLE.size :])
                    if kind == _TARGET:
                        target = id
                    elif kind == _DIRECTORY:
                        directory = id
                    else:
                        name = data[data_end : data.index(0, data_end, next_info)]
                        if name in (b".", b""):  # the directory itself
                            directory = id
                        else:
                            slots.append(Slot(id, name))
                info = next_info
        except (struct.error, ValueError):
            looks[Overflow()] = None
        if mask & syscalls.FAN_Q_OVERFLOW:
            looks[Overflow()] = None
            continue
        if mask & NAME_EVENTS:
            if not slots:
                looks[Overflow()] = None
            for slot in slots:
                looks[SlotLook(slot, target)] = None
                looks[InodeLook(slot.parent)] = None
        if target is not None:
            looks[InodeLook(target)] = None
        elif directory is not None:
            looks[InodeLook(directory)] = None
        elif not mask & NAME_EVENTS:
            looks[Overflow()] = None  # attributes of nobody
    return Batch(list(looks), events)


class Names:
    """The queue of name and attribute events of the source's filesystem, from construction until `close`.

    With a `store`, the queue goes on when the process ends. Events are read into memory that is kept with it, and stay
    there until `advance`: a process that dies in between leaves them to the next one.
    """

    def __init__(
        self,
        source: SourceRoot,
        *,
        modify: bool = False,
        store: Store | None = None,
        adopt: bool = False,
        scratch_bytes: int = SCRATCH_BYTES,
    ) -> None:
        """Start listening, or go on where another process has ended. EnvironmentFault if fanotify cannot.

        `modify` asks for FAN_MODIFY as well: it costs each write about a microsecond, and tells of modification times
        and truncations where no hook does. `adopt`: take over what is in the store; else it is replaced.
        """
        self._id_of_handle = source.id_of_handle
        self._owed = 0
        self._fd = -1
        self._scratch: Scratch | None = None
        self.not_kept = ""
        """Why the queue will end with this process, though there is a store; empty if it will not."""
        events = EVENTS | syscalls.FAN_MODIFY if modify else EVENTS
        self.adopted = store is not None and adopt and self._take_over(store, source, events)
        """Whether it is the queue of an earlier process, and nobody else has read from it."""
        if self.adopted:
            return
        if store is not None:
            store.drop()
        try:
            self._fd = syscalls.fanotify_init(
                syscalls.FAN_CLASS_NOTIF
                | syscalls.FAN_REPORT_DFID_NAME_TARGET
                | syscalls.FAN_NONBLOCK
                | syscalls.FAN_CLOEXEC
            )
            mark(self._fd, source, events)
            self._scratch = Scratch.make(scratch_bytes)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise refusal(source, error) from error
            raise
        if store is not None:
            try:
                store.put({QUEUE: self._fd, SCRATCH: self._scratch.descriptor})
            except OSError as error:
                self.not_kept = str(error)

    def _take_over(self, store: Store, source: SourceRoot, events: int) -> bool:
        left = store.take()
        self._fd = left.pop(QUEUE, -1)
        scratch = left.pop(SCRATCH, -1)
        for other in left.values():
            os.close(other)
        if self._fd >= 0 and scratch >= 0 and marked(self._fd, source, events):
            try:
                self._scratch = Scratch(scratch)
            except (OSError, ValueError):
                pass
            else:
                return True
        elif scratch >= 0:
            os.close(scratch)
        self.close()
        return False

    def fileno(self) -> int:
        """For a selector: readable while events wait."""
        return self._fd

    def queued(self) -> int:
        """Events (not bytes) that wait now, and were not drained."""
        # The kernel counts bytes as if events were nothing but their metadata.
        return syscalls.fionread(self._fd) // _METADATA.size

    def drain_queued(self) -> list[Look]:
        """Looks of at least all events that waited at the call, however many come meanwhile.

        Where they do not fit, `behind` is true afterwards: call `advance` and this again. What a process before has
        left undone comes first.
        """
        assert self._scratch is not None, "closed"
        looks: dict[Look, None] = {}
        if self._scratch.left:
            data, doubt = self._scratch.recovered()
            looks.update(dict.fromkeys(parse(data, self._id_of_handle).looks))
            if doubt:
                looks[Overflow()] = None
        self._owed = self._owed or self.queued()
        while self._owed > 0:
            read = self._scratch.read(self._fd)
            if read is None:
                return list(looks)
            batch = parse(read, self._id_of_handle)
            if batch.events == 0:
                self._owed = 0
                break
            self._owed -= batch.events
            looks.update(dict.fromkeys(batch.looks))
        self._owed = 0
        return list(looks)

    @property
    def behind(self) -> bool:
        """Whether events that waited at the last `drain_queued` wait still: there was no room for them."""
        return self._owed > 0

    def advance(self) -> None:
        """What was drained is done, or journaled: no process after this one need do it."""
        assert self._scratch is not None, "closed"
        self._scratch.clear()

    def close(self) -> None:
        """Stop listening, unless that is kept. May be called twice."""
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

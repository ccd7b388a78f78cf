"""The sender's picture of the names within the watched tree: slots ↔ ids.

Takes what looks found (`bind`, `unbind`) and gives back who is where. It is a picture, drawn one slot at a time, so it
may for a while show what never was: a file without a name (its old slot was looked at before its new one), or two
directories each inside the other. Nothing here does I/O, and nothing here decides that an inode is gone: an id stays a
member until `forget`, with or without a name.

Promises no order but that of binding, and no safety against being changed while one of its views is iterated. An id
costs about 500 bytes, its name included: regular files, the many, have no entry but their slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from replicator.model import FileId, Kind, Slot

_EMPTY: Mapping[bytes, FileId] = MappingProxyType({})


class _Directory:
    """The id object that all slots in a directory share, and the names in it."""

    __slots__ = ("id", "names")

    def __init__(self, inode: FileId) -> None:
        self.id = inode
        self.names: dict[bytes, FileId] = {}


class TreeIndex:
    """Which id each slot of the tree holds, and which slots each id has."""

    def __init__(self, root: FileId) -> None:
        self._root = root
        self._directories: dict[FileId, _Directory] = {root: _Directory(root)}
        # One slot is by far the commonest; a dict (ordered, quick to remove from) holds several. No slot is None.
        self._places: dict[FileId, Slot | dict[Slot, None] | None] = {root: None}
        self._odd: dict[FileId, Kind] = {}  # kinds other than regular file and directory
        self._nameless: dict[FileId, None] = {}

    @property
    def root(self) -> FileId:
        """The watched directory itself: a member without a slot, and never nameless."""
        return self._root

    def __len__(self) -> int:
        """How many members there are: named, nameless and the root."""
        return len(self._places)

    def members(self) -> list[FileId]:
        """All of them, as they are now."""
        return list(self._places)

    def is_member(self, inode: FileId) -> bool:
        """Whether the id has a name in the tree, or had one and has not been forgotten yet."""
        return inode in self._places

    def is_directory(self, inode: FileId) -> bool:
        """Whether the id is a member and a directory."""
        return inode in self._directories

    def kind(self, inode: FileId) -> Kind:
        """The kind the id was bound with. KeyError if it is not a member."""
        if inode in self._directories:
            return Kind.DIRECTORY
        if inode not in self._places:
            raise KeyError(inode)
        return self._odd.get(inode, Kind.FILE)

    def get(self, slot: Slot) -> FileId | None:
        """The id in the slot; None if it is empty or its directory is not a member."""
        directory = self._directories.get(slot.parent)
        return directory.names.get(slot.name) if directory else None

    def children(self, directory: FileId) -> Mapping[bytes, FileId]:
        """The names in a directory, as a live read-only view; empty for whatever is not a member directory."""
        found = self._directories.get(directory)
        return MappingProxyType(found.names) if found else _EMPTY

    def slots_of(self, inode: FileId) -> tuple[Slot, ...]:
        """All slots the id is in, oldest binding first."""
        place = self._places.get(inode)
        if place is None:
            return ()
        return tuple(place) if isinstance(place, dict) else (place,)

    def nameless(self) -> tuple[FileId, ...]:
        """The members that have lost their last slot (the root is not one of them)."""
        return tuple(self._nameless)

    def bind(self, slot: Slot, inode: FileId, kind: Kind) -> FileId | None:
        """Put the id in the slot and return the id it displaced there (None: nobody, or itself).

        A directory leaves the slot it had. What was displaced stays a member, perhaps a nameless one. KeyError if
        the slot's parent is not a member directory, ValueError for the root or an id known as another kind.
        """
        parent = self._directories.get(slot.parent)
        if parent is None:
            raise KeyError(slot.parent)
        if inode == self._root:
            raise ValueError("the root has no slot in its own tree")
        if inode in self._places and self.kind(inode) is not kind:
            raise ValueError(f"{inode.text()} is a {self.kind(inode).name.lower()}, not a {kind.name.lower()}")
        displaced = parent.names.get(slot.name)
        if displaced == inode:
            return None
        if displaced is not None:
            self._remove(slot)
        if kind is Kind.DIRECTORY:
            for old in self.slots_of(inode):
                self._remove(old)
            # The key that is kept, so that every slot in it shares one id object.
            inode = self._directories.setdefault(inode, _Directory(inode)).id
        elif kind is not Kind.FILE:
            self._odd[inode] = kind
        kept = Slot(parent.id, slot.name)
        parent.names[kept.name] = inode
        place = self._places.get(inode)
        if place is None:
            self._places[inode] = kept
        elif isinstance(place, dict):
            place[kept] = None
        else:
            self._places[inode] = {place: None, kept: None}
        self._nameless.pop(inode, None)
        return displaced

    def unbind(self, slot: Slot) -> FileId | None:
        """Empty the slot and return the id that was in it: it stays a member, perhaps a nameless one."""
        return self._remove(slot)

    def forget(self, inode: FileId) -> list[FileId]:
        """The id has left the tree: remove it and, below a directory, every slot.

        Returns the ids that are no longer members thereby, the id itself first: those without a slot elsewhere.
        Empty if it was not a member. ValueError for the root.
        """
        if inode == self._root:
            raise ValueError("the root cannot leave its own tree")
        if inode not in self._places:
            return []
        for slot in self.slots_of(inode):
            self._remove(slot)
        gone: list[FileId] = []
        pending = [inode]
        while pending:
            current = pending.pop()
            if self._places.get(current) is not None or current not in self._places:
                continue  # named elsewhere, or (a nameless loop of directories) already removed
            gone.append(current)
            del self._places[current]
            self._odd.pop(current, None)
            self._nameless.pop(current, None)
            directory = self._directories.get(current)
            if directory is not None:
                for name, child in list(directory.names.items()):
                    self._remove(Slot(current, name))
                    pending.append(child)
                del self._directories[current]
        return gone

    def path(self, inode: FileId) -> bytes | None:
        """Some path of the id relative to the root (b"" for the root); None if no slot of it leads there."""
        for slot in self.slots_of(inode):
            prefix = self._directory_path(slot.parent)
            if prefix is not None:
                return prefix + slot.name
        return b"" if inode == self._root else None

    def subtree(self, inode: FileId) -> Iterator[FileId]:
        """The id and all below it, directories before what they hold, each id once; nothing if it is not a member.

        The index must not change meanwhile.
        """
        if inode not in self._places:
            return
        linked: set[FileId] = set()  # only an id with several slots can be met twice
        yield inode
        pending = [iter(self.children(inode).values())]
        while pending:
            child = next(pending[-1], None)
            if child is None:
                pending.pop()
                continue
            if child == inode:
                continue  # a loop of directories
            if isinstance(self._places[child], dict):
                if child in linked:
                    continue
                linked.add(child)
            yield child
            directory = self._directories.get(child)
            if directory is not None:
                pending.append(iter(directory.names.values()))

    def _directory_path(self, directory: FileId) -> bytes | None:
        """The path of a directory with its closing slash; b"" for the root, None if it hangs in the air."""
        names: list[bytes] = []
        seen: set[FileId] = set()
        while directory != self._root:
            place = self._places.get(directory)
            if not isinstance(place, Slot) or directory in seen:
                return None
            seen.add(directory)
            names.append(place.name)
            directory = place.parent
        return b"".join(name + b"/" for name in reversed(names))

    def _remove(self, slot: Slot) -> FileId | None:
        directory = self._directories.get(slot.parent)
        inode = directory.names.pop(slot.name, None) if directory else None
        if inode is None:
            return None
        place = self._places[inode]
        if isinstance(place, dict):
            del place[slot]
            if len(place) == 1:
                self._places[inode] = next(iter(place))
        else:
            self._places[inode] = None
            self._nameless[inode] = None
        return inode

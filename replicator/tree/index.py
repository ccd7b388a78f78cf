"""The sender's picture of the names within the watched tree: slots ↔ ids.

Takes what looks found (`bind`, `unbind`) and gives back who is where. It is a picture, drawn one slot at a time, so it
may for a while show what never was: a file without a name (its old slot was looked at before its new one), or two
directories each inside the other. Nothing here decides that an inode is gone: an id stays a member until `forget`, with
or without a name.

It lies over a store of what the replica durably has: only what differs from that, or was asked for lately, is in
memory. `committed` says that the store has caught up. Promises no order of names, and no safety against being changed
while it is iterated. sqlite3.Error when the store fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from replicator.model import FileId, Kind, Slot
from replicator.tree.store import Committed, Entry, Told, id_of, key_of
from replicator.tree.undecided import Undecided, reborn

CACHED: Final = 1 << 13
"""Inodes and slots that are as the store has them and are kept in memory."""
PAGE: Final = 1024
"""Members that are read from the store at once."""


class Names(Protocol):
    """What of a store is needed here."""

    @property
    def count(self) -> int:
        """See IndexStore."""

    def get(self, slot: Slot) -> FileId | None:
        """See IndexStore."""

    def entries(self, directory: FileId) -> list[tuple[bytes, bytes]]:
        """See IndexStore."""

    def listing(self, directory: FileId) -> list[tuple[bytes, FileId, bool, bool]]:
        """See IndexStore."""

    def places(self, id: FileId) -> tuple[Kind, list[Slot]] | None:
        """See IndexStore."""

    def nameless(self) -> list[Entry]:
        """See IndexStore."""

    def size(self, id: FileId) -> int | None:
        """See IndexStore."""

    def ids(self, after: bytes, most: int, *, directories: bool) -> tuple[list[FileId], bytes]:
        """See IndexStore."""


class _Nothing:
    """The store of who has none: everything stays in memory."""

    count = 0

    def get(self, _: Slot) -> FileId | None:
        return None

    def entries(self, _: FileId) -> list[tuple[bytes, bytes]]:
        return []

    def listing(self, _: FileId) -> list[tuple[bytes, FileId, bool, bool]]:
        return []

    def places(self, _: FileId) -> tuple[Kind, list[Slot]] | None:
        return None

    def nameless(self) -> list[Entry]:
        return []

    def size(self, _: FileId) -> int | None:
        return None

    def ids(self, after: bytes, most: int, *, directories: bool) -> tuple[list[FileId], bytes]:
        return [], b""


class _Node:
    """A member: its kind, its slots, and whether the store may have it, or names in it."""

    __slots__ = ("kind", "slots", "stored")

    def __init__(self, kind: Kind, slots: Iterable[Slot], *, stored: bool) -> None:
        self.kind = kind
        self.slots: dict[Slot, None] = dict.fromkeys(slots)
        self.stored = stored


class TreeIndex:
    """Which id each slot of the tree holds, and which slots each id has."""

    def __init__(self, root: FileId, store: Names | None = None) -> None:
        """`store`: as it was settled for this root; without one, everything stays in memory."""
        self._root = root
        self._store: Names = store or _Nothing()
        self._lasting = store is not None
        self._over: dict[FileId, dict[bytes, FileId | None]] = {}
        """By directory: slots that may differ from the store's."""
        self._changed: dict[FileId, _Node] = {root: _Node(Kind.DIRECTORY, (), stored=True)}
        """Members that may differ from the store's."""
        self._forgotten: dict[FileId, bool] = {}
        """No members any more, until the store has their deaths: whether it may have them."""
        self._returned: set[FileId] = set()
        """Directories that were forgotten and are members again: nobody may be told of what is in them no more."""
        self._same: dict[FileId, _Node | None] = {}
        self._read: dict[FileId, dict[bytes, FileId | None]] = {}
        self._reads = 0
        self._nameless: dict[FileId, None] = {}
        self._count = 1 + self._store.count
        for id, kind in self._store.nameless():
            self._changed[id] = _Node(kind, (), stored=True)
            self._nameless[id] = None

    @property
    def root(self) -> FileId:
        """The watched directory itself: a member without a slot, and never nameless."""
        return self._root

    def __len__(self) -> int:
        """How many members there are: named, nameless and the root."""
        return self._count

    def members(self) -> Iterator[FileId]:
        """All of them, each once, some that come meanwhile too. The index may change meanwhile."""
        lately = dict.fromkeys(self._changed)
        yield from lately
        for directories in (True, False):
            after = b""
            while True:
                ids, after = self._store.ids(after, PAGE, directories=directories)
                yield from (id for id in ids if id not in lately)
                if not after:
                    break

    def is_member(self, inode: FileId) -> bool:
        """Whether the id has a name in the tree, or had one and has not been forgotten yet."""
        return self._node(inode) is not None

    def was_member(self, inode: FileId) -> bool:
        """Whether the id was forgotten, of which the store may not have heard yet."""
        return inode in self._forgotten

    def is_directory(self, inode: FileId) -> bool:
        """Whether the id is a member and a directory."""
        node = self._node(inode)
        return node is not None and node.kind is Kind.DIRECTORY

    def is_regular(self, inode: FileId) -> bool:
        """Whether the id is a member and a regular file."""
        node = self._node(inode)
        return node is not None and node.kind is Kind.FILE

    def kind(self, inode: FileId) -> Kind:
        """The kind the id was bound with. KeyError if it is not a member."""
        node = self._node(inode)
        if node is None:
            raise KeyError(inode)
        return node.kind

    def get(self, slot: Slot) -> FileId | None:
        """The id in the slot; None if it is empty or its directory is not a member."""
        over = self._over.get(slot.parent)
        if over is not None and slot.name in over:
            return over[slot.name]
        directory = self._node(slot.parent)
        if directory is None or not directory.stored or directory.kind is not Kind.DIRECTORY:
            return None
        names = self._read.setdefault(slot.parent, {})
        if slot.name not in names:
            self._reads += 1
            if self._reads >= CACHED:
                self._read, self._reads = {slot.parent: (names := {})}, 0
            names[slot.name] = self._store.get(slot)
        return names[slot.name]

    def children(self, directory: FileId) -> dict[bytes, FileId]:
        """The names in a directory as they are now; empty for whatever is not a member directory."""
        return {name: id_of(key) for name, key in self.entries(directory).items()}

    def entries(self, directory: FileId) -> dict[bytes, bytes]:
        """As `children`, sorted, with the keys of the ids."""
        node = self._node(directory)
        if node is None or node.kind is not Kind.DIRECTORY:
            return {}
        found = dict(self._store.entries(directory)) if node.stored else {}
        over = self._over.get(directory)
        if not over:
            return found
        for name, id in over.items():
            if id is None:
                found.pop(name, None)
            else:
                found[name] = key_of(id)
        return dict(sorted(found.items()))

    def unlike(self, directory: FileId, numbers: Mapping[bytes, int]) -> list[bytes]:
        """The names that are in a directory here or there (`numbers`: of inodes, by name), without those that mean the
        same number here and there. An inode of another root than the directory's is never the same."""
        get, root = numbers.get, key_of(directory._replace(ino=0))[1:-4]
        entries = self.entries(directory)
        found = [
            name
            for name, key in entries.items()
            if key[(end := 1 + (key[0] >> 4)) : -4] != root or int.from_bytes(key[1:end], "big") != get(name)
        ]
        return found + [name for name in numbers if name not in entries]

    def slots_of(self, inode: FileId) -> tuple[Slot, ...]:
        """All slots the id is in."""
        node = self._node(inode)
        return () if node is None else tuple(node.slots)

    def nameless(self) -> tuple[FileId, ...]:
        """The members that have lost their last slot (the root is not one of them)."""
        return tuple(self._nameless)

    def changed(self) -> Iterator[FileId]:
        """Members that may not be as the store has them."""
        yield from self._changed

    def directories(self) -> list[FileId]:
        """All members that are directories."""
        found = {id: None for id, node in self._changed.items() if node.kind is Kind.DIRECTORY}
        after = b""
        while True:
            ids, after = self._store.ids(after, CACHED, directories=True)
            found.update((id, None) for id in ids if id not in found and self.is_member(id))
            if not after:
                return list(found)

    def size(self, id: FileId) -> int | None:
        """The size of a file as the store has it, in bytes; None if it does not know."""
        return self._store.size(id)

    def pending(self, directory: FileId) -> bool:
        """Whether a name in the directory may not be as the store has it."""
        return bool(self._over.get(directory))

    def bind(self, slot: Slot, inode: FileId, kind: Kind) -> FileId | None:
        """Put the id in the slot and return the id it displaced there (None: nobody, or itself).

        A directory leaves the slot it had. What was displaced stays a member, perhaps a nameless one. KeyError if
        the slot's parent is not a member directory, ValueError for the root or an id known as another kind.
        """
        if not self.is_directory(slot.parent):
            raise KeyError(slot.parent)
        if inode == self._root:
            raise ValueError("the root has no slot in its own tree")
        node = self._node(inode)
        if node is not None and node.kind is not kind:
            raise ValueError(f"{inode.text()} is a {node.kind.name.lower()}, not a {kind.name.lower()}")
        displaced = self.get(slot)
        if displaced == inode:
            return None
        if displaced is not None:
            self._remove(slot)
        if kind is Kind.DIRECTORY:
            for old in self.slots_of(inode):
                self._remove(old)
        if node is None:
            node = _Node(kind, (), stored=self._forgotten.pop(inode, False))
            self._count += 1
            if inode in self._over:
                self._returned.add(inode)
        node.slots[slot] = None
        self._changed[inode] = node
        self._same.pop(inode, None)
        self._over.setdefault(slot.parent, {})[slot.name] = inode
        self._nameless.pop(inode, None)
        return displaced

    def unbind(self, slot: Slot) -> FileId | None:
        """Empty the slot and return the id that was in it: it stays a member, perhaps a nameless one."""
        return self._remove(slot)

    def forget(self, inode: FileId) -> dict[FileId, Kind]:
        """The id has left the tree: remove it and, below a directory, every slot.

        Returns who is no longer a member thereby, the id itself first: those without a slot elsewhere. Empty if it was
        not a member. ValueError for the root.
        """
        if inode == self._root:
            raise ValueError("the root cannot leave its own tree")
        for slot in self.slots_of(inode):
            self._remove(slot)
        gone: dict[FileId, Kind] = {}
        pending = [inode]
        while pending:
            current = pending.pop()
            node = self._node(current)
            if node is None or node.slots:
                continue  # named elsewhere, or (a nameless loop of directories) already removed
            gone[current] = node.kind
            for name, child in self.children(current).items():
                self._remove(Slot(current, name))
                pending.append(child)
            self._changed.pop(current, None)
            self._returned.discard(current)
            self._same.pop(current, None)
            self._nameless.pop(current, None)
            self._count -= 1
            if self._lasting:
                self._forgotten[current] = node.stored
            else:
                self._over.pop(current, None)
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
        if not self.is_member(inode):
            return
        linked: set[FileId] = set()  # only an id with several slots can be met twice
        yield inode
        pending = [iter(self._listing(inode))]
        while pending:
            entry = next(pending[-1], None)
            if entry is None:
                pending.pop()
                continue
            child, is_directory, several = entry
            if child == inode:
                continue  # a loop of directories
            if several:
                if child in linked:
                    continue
                linked.add(child)
            yield child
            if is_directory:
                pending.append(iter(self._listing(child)))

    def committed(self, done: Committed, later: Sequence[Told] = ()) -> None:
        """The store has taken this over. `later`: what it is still to be told, for all that was told by now.

        What that decides it may say right now by chance, and wrong next.
        """
        undecided, again = Undecided(later), reborn(done.told, later)
        touched: dict[FileId, None] = dict.fromkeys(done.displaced)
        for one in done.told:
            for slot, entry in one.slots.items():
                self._heard(slot, entry, touched)
            for id in one.dead:
                self._buried(id, again=id in again)
        for slot, holder in done.holders.items():
            self._read.get(slot.parent, {}).pop(slot.name, None)
            self._agreed(slot, holder, undecided)
        for id in list(self._returned):
            empty = [Slot(id, name) for name, holder in self._over.get(id, {}).items() if holder is None]
            if not empty:
                self._returned.discard(id)
                continue
            there = dict(self._store.entries(id))
            for slot in empty:
                if slot.name not in there:
                    self._agreed(slot, None, undecided)
        for id in touched:
            node = self._changed.get(id)
            if node is None or id == self._root or not node.slots:
                continue
            if not any(slot.name in self._over.get(slot.parent, {}) for slot in node.slots):
                del self._changed[id]

    def _agreed(self, slot: Slot, holder: FileId | None, undecided: Undecided) -> None:
        """The store says that; if it will go on doing so, and it is right, it need not be kept here."""
        over = self._over.get(slot.parent)
        if over is None or slot.name not in over or over[slot.name] != holder or undecided.has(slot, holder):
            return
        del over[slot.name]
        if not over:
            del self._over[slot.parent]

    def _heard(self, slot: Slot, entry: Entry | None, touched: dict[FileId, None]) -> None:
        if entry is not None:
            id = entry[0]
            touched[id] = None
            for each in (id, slot.parent):  # a name may be told before those of its directory
                node = self._changed.get(each)
                if node is not None:
                    node.stored = True
                elif each in self._forgotten:
                    self._forgotten[each] = True

    def _buried(self, id: FileId, *, again: bool) -> None:
        node = self._changed.get(id)
        if node is not None:
            node.stored = False
        self._same.pop(id, None)
        self._read.pop(id, None)
        if self.is_member(id):
            return
        if again:  # it came back and is forgotten once more, of which the store has yet to hear
            self._forgotten[id] = False
        else:
            self._forgotten.pop(id, None)
            self._over.pop(id, None)

    def _node(self, id: FileId) -> _Node | None:
        node = self._changed.get(id)
        if node is not None or id in self._forgotten:
            return node
        if id not in self._same:
            if len(self._same) >= CACHED:
                self._same.clear()
            self._same[id] = self._load(id)
        return self._same[id]

    def _load(self, id: FileId) -> _Node | None:
        found = self._store.places(id)
        if found is None:
            return None
        # What was taken from a member's slots, or given to it, is no secret here; only the store has not heard of it.
        slots = [slot for slot in found[1] if self._over.get(slot.parent, {}).get(slot.name, id) == id]
        return _Node(found[0], slots, stored=True) if slots else None

    def _listing(self, directory: FileId) -> Iterator[tuple[FileId, bool, bool]]:
        """(id, whether it is a directory, whether it may have other names)."""
        node = self._node(directory)
        if node is None or node.kind is not Kind.DIRECTORY:
            return
        over = self._over.get(directory, {})
        if node.stored:
            for name, id, is_directory, several in self._store.listing(directory):
                if name not in over:
                    yield id, is_directory, several or id in self._changed
        for child in over.values():
            if child is not None:
                there = self._changed[child]
                yield child, there.kind is Kind.DIRECTORY, len(there.slots) > 1

    def _directory_path(self, directory: FileId) -> bytes | None:
        """The path of a directory with its closing slash; b"" for the root, None if it hangs in the air."""
        names: list[bytes] = []
        seen: set[FileId] = set()
        while directory != self._root:
            node = self._node(directory)
            if node is None or not node.slots or directory in seen:
                return None
            seen.add(directory)
            place = next(iter(node.slots))
            names.append(place.name)
            directory = place.parent
        return b"".join(name + b"/" for name in reversed(names))

    def _remove(self, slot: Slot) -> FileId | None:
        inode = self.get(slot)
        if inode is None:
            return None
        node = self._node(inode)
        assert node is not None
        self._changed[inode] = node
        self._same.pop(inode, None)
        self._over.setdefault(slot.parent, {})[slot.name] = None
        del node.slots[slot]
        if not node.slots:
            self._nameless[inode] = None
        return inode

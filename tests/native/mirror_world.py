"""A small source in memory that turns its changes into facts, and an oracle that compares a replica with it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field, replace

from replicator.mirror.mirror import Mirror
from replicator.model import Answer, Attributes, Extent, Facts, FileId, InodeFact, Kind, Slot, SlotFact

ROOT = FileId(0, 0, 2, 0)
_FORMATS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
}


@dataclass
class Inode:
    """One inode of the source."""

    kind: Kind
    content: bytes = b""
    attributes: Attributes = field(default_factory=lambda: Attributes(0o644, 0, 0, 1_000_000_001, 1_000_000_002))


class World:
    """Names and inodes; every method returns what it made, `facts` tells about ids and slots as they are now."""

    def __init__(self) -> None:
        self.inodes: dict[FileId, Inode] = {ROOT: Inode(Kind.DIRECTORY, attributes=_attributes(0o755))}
        self.names: dict[Slot, FileId] = {}
        self.epoch = 0
        self._next = 10

    def make(
        self,
        parent: FileId,
        name: bytes,
        kind: Kind = Kind.FILE,
        content: bytes = b"",
        **attributes: object,
    ) -> FileId:
        """A new inode with a name."""
        self._next += 1
        id = FileId(0, 0, self._next, 1)
        mode = 0o755 if kind is Kind.DIRECTORY else 0o777 if kind is Kind.SYMLINK else 0o644
        self.inodes[id] = Inode(kind, content, replace(_attributes(mode), **attributes))  # type: ignore[arg-type]
        self.names[Slot(parent, name)] = id
        return id

    def fact(self, id: FileId, **changes: object) -> InodeFact:
        """The whole inode; `changes` overrides fields of the fact."""
        inode = self.inodes[id]
        file = inode.kind is Kind.FILE
        fact = InodeFact(
            id,
            inode.kind,
            inode.attributes,
            size=len(inode.content) if file else 0,
            whole=True,
            lowest=0 if file else None,
            data=(Extent(0, len(inode.content)),) if file and inode.content else (),
        )
        return replace(fact, **changes)  # type: ignore[arg-type]

    def epoch_of(
        self,
        slots: dict[Slot, FileId | None] | None = None,
        inodes: list[InodeFact] | None = None,
        dead: list[FileId] | None = None,
    ) -> tuple[Facts, list[tuple[int, int, memoryview]]]:
        """Facts with the bytes that belong to them, taken from the present contents."""
        self.epoch += 1
        slot_facts = tuple(SlotFact(slot, id) for slot, id in (slots or {}).items())
        facts = Facts(self.epoch, slot_facts, tuple(inodes or ()), tuple(dead or ()))
        payload = []
        for index, fact in enumerate(facts.inodes):
            for extent in fact.data:
                content = self.inodes[fact.id].content
                payload.append((index, extent.offset, memoryview(content)[extent.offset : extent.end]))
        return facts, payload

    def tell(
        self,
        mirror: Mirror,
        slots: dict[Slot, FileId | None] | None = None,
        inodes: list[InodeFact] | None = None,
        dead: list[FileId] | None = None,
    ) -> Answer:
        """One epoch."""
        return mirror.apply(*self.epoch_of(slots, inodes, dead))

    def tell_all(self, mirror: Mirror, check: bool = False) -> Answer:
        """Everything there is, as an initial sync (with `check`, without bytes)."""
        if check:
            empty: dict[str, object] = {"check": True, "whole": False, "data": (), "lowest": None}
            inodes = [self.fact(id, **empty) for id in self.inodes]
        else:
            inodes = [self.fact(id) for id in self.inodes]
        return self.tell(mirror, dict(self.names), inodes)

    def tell_until_quiet(self, mirror: Mirror, answer: Answer) -> None:
        """Answer every need and look as a sender does, until there are none."""
        for _ in range(100):
            if not (answer.needs or answer.looks):
                return
            slots: dict[Slot, FileId | None] = {slot: self.names.get(slot) for slot in answer.looks}
            inodes, dead = [], []
            for id in answer.needs:
                if id not in self.inodes:
                    dead.append(id)
                    continue
                inodes.append(self.fact(id))
                slots.update({slot: named for slot, named in self.names.items() if named == id or slot.parent == id})
            answer = self.tell(mirror, slots, inodes, dead)
        raise AssertionError(f"never quiet: {answer}")

    def differences(self, root: str | bytes) -> list[str]:
        """What the directory has otherwise than this world: names, kinds, contents, attributes, hard links."""
        found: list[str] = []
        actual: dict[FileId, tuple[int, int]] = {}
        self._compare(os.fsencode(root), ROOT, actual, found)
        if len(set(actual.values())) != len(actual):
            found.append("two ids share an inode")
        return found

    def _compare(self, path: bytes, id: FileId, actual: dict[FileId, tuple[int, int]], found: list[str]) -> None:
        inode = self.inodes[id]
        have = os.lstat(path)
        wanted = inode.attributes
        kind = _FORMATS[stat.S_IFMT(have.st_mode)]
        if kind is not inode.kind:
            found.append(f"{path!r}: kind {kind} instead of {inode.kind}")
            return
        if actual.setdefault(id, (have.st_dev, have.st_ino)) != (have.st_dev, have.st_ino):
            found.append(f"{path!r}: not the same inode as its other name")
        pairs: list[tuple[str, object, object]] = [
            ("uid", have.st_uid, wanted.uid),
            ("gid", have.st_gid, wanted.gid),
            ("mtime", have.st_mtime_ns, wanted.mtime_ns),
        ]
        if kind is not Kind.SYMLINK:
            pairs.append(("mode", oct(stat.S_IMODE(have.st_mode)), oct(wanted.mode)))
        else:
            pairs.append(("target", os.readlink(path), wanted.target))
        if kind in (Kind.CHARACTER, Kind.BLOCK):
            pairs.append(("rdev", have.st_rdev, wanted.rdev))
        names = os.listxattr(path, follow_symlinks=False)
        xattrs = {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}
        xattrs = {name: value for name, value in xattrs.items() if not name.startswith(b"trusted.SGI_ACL_")}
        pairs.append(("xattrs", xattrs, dict(wanted.xattrs)))
        if kind is Kind.FILE:
            with open(path, "rb") as file:
                content = file.read()
            if content != inode.content:
                found.append(f"{path!r}: {_first_difference(content, inode.content)}")
            pairs.append(("links", have.st_nlink, sum(1 for named in self.names.values() if named == id)))
        found.extend(f"{path!r}: {what} {is_!r} instead of {want!r}" for what, is_, want in pairs if is_ != want)
        if kind is Kind.DIRECTORY:
            children = {slot.name: child for slot, child in self.names.items() if slot.parent == id}
            there = set(os.listdir(path)) - ({b"lost+found"} if id == ROOT else set())
            found.extend(f"{path!r}: {name!r} is missing" for name in children.keys() - there)
            found.extend(f"{path!r}: {name!r} is too much" for name in there - children.keys())
            for name in sorted(children.keys() & there):
                self._compare(os.path.join(path, name), children[name], actual, found)


def _first_difference(have: bytes, want: bytes) -> str:
    at = next((at for at, (one, other) in enumerate(zip(have, want, strict=False)) if one != other), None)
    return f"{len(have)} bytes, {len(want)} wanted, first different: {at}"


def _attributes(mode: int) -> Attributes:
    return Attributes(mode, 0, 0, 1_000_000_001, 1_000_000_002)


def make_durable(mirror: Mirror) -> int:
    """One durable cycle, in this thread."""
    job = mirror.start_sync()
    job()
    epoch, lost = mirror.finish_sync(job)
    assert not lost
    return epoch

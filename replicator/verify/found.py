"""What a comparison finds: one way in which the replica is not what the source is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from replicator.link.inquiry import Finding
from replicator.model import Extent, FileId, Slot
from replicator.observe.log import printable
from replicator.tree.index import TreeIndex

MISSING = "missing"
EXTRA = "name only on the replica"
UNREADABLE = "unreadable"
CONTENT = "content"
KINDS = (
    *(MISSING, EXTRA, "name of another file", "kind", "size", CONTENT),
    *("mode", "uid", "gid", "mtime", "rdev", "target", "xattrs", UNREADABLE),
)
"""All kinds, as they are shown."""


@dataclass(frozen=True, slots=True)
class Found:
    """One difference."""

    id: FileId
    """The inode; the directory if it is about a name."""
    kind: str
    names: tuple[bytes, ...] = ()
    """The way from the directory to the name it is about."""
    where: Extent | None = None
    """Where the content begins to differ, within a block."""
    reason: str = ""

    @property
    def slot(self) -> Slot | None:
        """The name it is about, or the foreign one above it."""
        return Slot(self.id, self.names[0]) if self.names else None

    def path(self, index: TreeIndex) -> str:
        """Relative to the source, for people; "." is the source itself."""
        above = index.path(self.id)
        if above is None:
            return f"inode {self.id.text()}"
        return printable(b"/".join(filter(None, (above, *self.names))) or b".")

    def tree(self, index: TreeIndex) -> dict[str, Any]:
        """For a program."""
        told: dict[str, Any] = {"kind": self.kind, "path": self.path(index)}
        if self.where is not None:
            told |= {"offset": self.where.offset, "length": self.where.length}
        if self.reason:
            told["reason"] = self.reason
        return told


def text(told: dict[str, Any]) -> str:
    """A line for people of what `tree` gave."""
    where = f", from byte {told['offset']} on" if "offset" in told else ""
    reason = f": {told['reason']}" if "reason" in told else ""
    return f"{told['kind']}: {told['path']}{where}{reason}"


def found_of(id: FileId, finding: Finding) -> list[Found]:
    """What a finding about an inode, or a part of it, says. Names that are missing are like inodes that are."""
    if finding.missing:
        return [Found(id, MISSING)]
    found = [Found(id, kind if kind in KINDS else UNREADABLE) for kind in finding.kinds]
    for names, kind in finding.names:
        found.append(Found(id, kind if kind in KINDS else UNREADABLE, names))
    if finding.error is not None:
        found.append(Found(id, UNREADABLE, reason=finding.error))
    if finding.verdict is not None and finding.verdict.differ:
        found.append(Found(id, CONTENT, where=finding.verdict.differ[0]))
    return found

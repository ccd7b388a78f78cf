"""What the receiver takes from a peer at all: refuses facts that no honest sender makes, before anything is planned.

Takes facts and the inventory, gives nothing or raises RemoteError. It does not promise that facts make sense together:
contradictions that a moving tree can produce are the planner's to solve.
"""

from __future__ import annotations

from replicator.errors import RemoteError
from replicator.mirror.steps import LIMBO, View
from replicator.model import END_OF_FILE, Extent, Facts, FileId, InodeFact, Kind, Slot

_NAME_MAX = 255
_TARGET_MAX = 4095


def check_facts(facts: Facts, view: View) -> None:
    """RemoteError, naming the fact, if an honest sender could not have sent it."""
    kinds: dict[FileId, Kind] = {}
    for fact in facts.inodes:
        _check_id(fact.id)
        record = view.record(fact.id)
        known = record.kind if record is not None else fact.kind
        if kinds.setdefault(fact.id, known) is not fact.kind:
            raise RemoteError(f"epoch {facts.epoch}: inode {fact.id.text()} changes its kind to {fact.kind}")
        if fact.id == view.root and fact.kind is not Kind.DIRECTORY:
            raise RemoteError(f"epoch {facts.epoch}: the root is said to be no directory")
        _check_inode(facts.epoch, fact)
    for slot_fact in facts.slots:
        check_slot(slot_fact.slot)
        parent = slot_fact.slot.parent
        record = view.record(parent)
        kind = kinds.get(parent, record.kind if record is not None else Kind.DIRECTORY)
        if kind is not Kind.DIRECTORY:
            raise RemoteError(f"epoch {facts.epoch}: a name in {parent.text()}, which is no directory")
        if slot_fact.id is not None:
            _check_id(slot_fact.id)
            if slot_fact.id == view.root:
                raise RemoteError(f"epoch {facts.epoch}: the root is given a name")
    for dead in facts.dead:
        _check_id(dead)
        if dead == view.root:
            raise RemoteError(f"epoch {facts.epoch}: the root is said to be dead")


def check_slot(slot: Slot) -> None:
    """RemoteError for a name that no directory can hold."""
    _check_id(slot.parent)
    name = slot.name
    if not 0 < len(name) <= _NAME_MAX or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise RemoteError(f"impossible name {name[:64]!r}")


def _check_id(id: FileId) -> None:
    if id.ino == LIMBO.ino or min(id) < 0 or max(id) >= 2**64:
        raise RemoteError(f"impossible file id {id}")


def _check_inode(epoch: int, fact: InodeFact) -> None:
    attributes = fact.attributes
    good = (
        0 <= attributes.mode <= 0o7777
        and 0 <= attributes.uid < 2**32 - 1
        and 0 <= attributes.gid < 2**32 - 1
        and abs(attributes.mtime_ns) < 2**66
        and 0 <= attributes.rdev < 2**64
        and 0 <= fact.size <= END_OF_FILE
        and (fact.lowest is None or 0 <= fact.lowest <= END_OF_FILE)
    )
    if fact.kind is Kind.SYMLINK:
        good = good and 0 < len(attributes.target) <= _TARGET_MAX and b"\0" not in attributes.target
    if fact.kind is Kind.FILE:
        limit = END_OF_FILE if fact.partial else fact.size
        good = good and _ascending(fact.data, limit) and _ascending(fact.holes, END_OF_FILE)
    else:
        good = good and not (fact.data or fact.holes or fact.partial or fact.size)
    if not good or any(not name or b"\0" in name for name in attributes.xattrs):
        raise RemoteError(f"epoch {epoch}: impossible values for inode {fact.id.text()}")


def _ascending(extents: tuple[Extent, ...], limit: int) -> bool:
    end = 0
    for extent in extents:
        if extent.offset < end or extent.length < 0 or extent.end > limit:
            return False
        end = extent.end
    return True

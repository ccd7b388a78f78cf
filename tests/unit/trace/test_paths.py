"""Looks that a sensor's records told wait in a queue that has an end."""

from __future__ import annotations

from unittest import mock

from replicator.capture.names import ListLook, Overflow
from replicator.model import FileId
from replicator.trace import paths
from replicator.trace.paths import ToldNames


def test_more_looks_than_there_is_room_for_are_one_look_at_everything() -> None:
    looks = [ListLook(FileId(0, 0, number, 1)) for number in range(4)]
    told = ToldNames()
    with mock.patch.object(paths, "TOLD", 3):
        told.add(looks[:3])
        assert told.drain_queued() == looks[:3]
        told.add(looks)
        assert told.drain_queued() == [Overflow()]
    assert told.drain_queued() == []

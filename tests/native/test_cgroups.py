"""Control groups are found by the number that the kernel gives them, also when they are gone."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator import syscalls
from replicator.attribution import cgroups
from replicator.attribution.cgroups import Cgroups
from tests.support.cgroups import cgroup, hierarchy

pytestmark = pytest.mark.native


@pytest.fixture
def mount(scratch: Path) -> Iterator[Path]:
    with hierarchy(scratch) as mount:
        yield mount


@pytest.fixture
def known() -> Iterator[Cgroups]:
    made = Cgroups()
    yield made
    made.close()


def refuse(*_: object) -> int:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def test_a_group_has_its_path_below_the_mount(mount: Path, known: Cgroups) -> None:
    with cgroup(mount, "/rsyncfs-test.slice/docker-1.scope") as group:
        assert known.path(group.id) == "/rsyncfs-test.slice/docker-1.scope"
    assert known.path(mount.stat().st_ino) == "/"


def test_a_group_that_is_gone_keeps_the_path_it_was_seen_with(mount: Path, known: Cgroups) -> None:
    with cgroup(mount, "/rsyncfs-test-seen") as seen, cgroup(mount, "/rsyncfs-test-unseen") as unseen:
        ids = seen.id, unseen.id
        known.path(seen.id)
    assert [known.path(id) for id in ids] == ["/rsyncfs-test-seen", None]


def test_a_group_is_found_where_its_handle_cannot_be_opened(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "open_by_handle_at", refuse)
    known = Cgroups()
    with cgroup(mount, "/rsyncfs-test.slice/inner") as group:
        assert known.path(group.id) == "/rsyncfs-test.slice/inner"
        assert known.path(mount.stat().st_ino) == "/"
    known.close()


def test_without_cgroup2_no_path_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "mount_detached", refuse)
    known = Cgroups()
    assert known.path(1) is None
    known.close()


def test_no_more_paths_are_kept_than_there_is_room_for(
    mount: Path, known: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "LIMIT", 2)
    with cgroup(mount, "/rsyncfs-test-old") as old:
        id = old.id
        assert known.path(id) == "/rsyncfs-test-old"
        known.path(mount.stat().st_ino)
        known.path(1 << 60)
    assert known.path(id) is None

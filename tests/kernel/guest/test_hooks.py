"""What a sender leaves in the kernel, however it ends: nothing. In a machine of its own nobody else has hooks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from tests.support.filesystems import filesystem, run
from tests.support.pair import Pair

KINDS = {"prog": "programs", "map": "maps", "link": "links"}


def loaded() -> set[str]:
    """Every BPF program, map and link of this kernel, in words."""
    return {
        f"{kind} {entry['id']} {entry.get('type')} {entry.get('name', '')}"
        for kind in KINDS
        for entry in json.loads(run("bpftool", "--json", kind, "show") or "[]")
    }


@pytest.mark.parametrize(("how", "fstype"), [("SIGTERM", "xfs"), ("SIGKILL", "ext4")])
def test_nothing_of_a_sender_remains_in_the_kernel(scratch: Path, fstype: str, how: str) -> None:
    with filesystem(fstype, scratch / "source") as source:
        replica = scratch / "replica"
        replica.mkdir()
        before = loaded()
        pair = Pair(source, replica, scratch / "state").start()
        try:
            (source / "file").write_bytes(b"seen")
            pair.assert_same()
            assert loaded() - before
            if how == "SIGTERM":
                pair.stop()
            else:
                pair.kill_sender()
            eventually(lambda: loaded() <= before, 10, "all that the sender had loaded is gone")
        finally:
            pair.kill()

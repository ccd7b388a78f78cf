"""What a sender leaves in the kernel, however it ends: nothing. In a machine of its own nobody else has hooks."""

from __future__ import annotations

import json
from pathlib import Path

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


def test_nothing_of_a_sender_remains_in_the_kernel(scratch: Path) -> None:
    with filesystem("xfs", scratch / "source") as source:
        replica = scratch / "replica"
        replica.mkdir()
        before = loaded()
        pair = Pair(source, replica, scratch / "state").start()
        try:
            for how, end in (("SIGKILL", pair.kill_sender), ("SIGTERM", pair.stop)):
                if how == "SIGTERM":
                    pair.start_sender()
                (source / "file").write_text(f"seen before {how}")
                pair.assert_same()
                assert loaded() - before
                end()
                eventually(lambda: loaded() <= before, 10, f"all that the sender had loaded is gone after {how}")
        finally:
            pair.kill()

"""A source that has the state directories of daemons in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from tests.support.filesystems import filesystem
from tests.support.pair import Pair, rsyncfs

pytestmark = pytest.mark.native


@pytest.fixture
def source(scratch: Path) -> Iterator[Path]:
    with filesystem("ext4", scratch / "s") as mounted:
        yield mounted


def settled(pair: Pair) -> None:
    """Nothing of rsyncfs's own keeps it busy: no epoch follows from another."""
    pair.wait()
    epoch = pair.status()["durable_epoch"]
    for _ in range(3):
        pair.wait()
    assert pair.status()["durable_epoch"] <= epoch + 2


def test_state_in_the_source_is_left_out_on_both_sides(source: Path, scratch: Path) -> None:
    """Also where it has moved to while the daemon ran, and that of the receiver; nothing else with such a name."""
    state = source / "var/state"
    state.mkdir(parents=True)
    (source / "send").mkdir()
    (source / "send/identity.json").write_text("the user's")
    with filesystem("ext4", scratch / "r") as mounted:
        (scratch / "logs").mkdir()
        pair = Pair(source, mounted, scratch / "logs")
        pair.send_state, pair.receive_state = state / "send", state / "receive"
        with pair:
            sender = pair.sender
            assert sender is not None
            eventually(lambda: (mounted / "var/state").is_dir(), 20, "what is around it is there")
            settled(pair)
            assert not {"send", "receive"} & {path.name for path in (mounted / "var/state").iterdir()}
            assert (mounted / "send/identity.json").read_text() == "the user's"
            told = pair.status()["excluded"]
            assert sorted(told) == [str(state / "receive"), str(state / "send")]
            assert f"{state / 'send'} is not replicated" in sender.text()
            assert "excluded:" in rsyncfs("status", "--state", pair.send_state).stdout
            (source / "var").rename(source / "moved")
            pair.send_state = source / "moved/state/send"
            pair.wait()
            names = {path.name for path in (mounted / "moved/state").iterdir()}
            assert not {"send", "receive"} & names
            assert not (mounted / "var").exists()


def test_the_source_is_not_its_own_state(source: Path, scratch: Path) -> None:
    done = rsyncfs("send", source, "127.0.0.1:9", "--state", source)
    assert done.returncode == 3
    assert "--state" in done.stderr
    assert "Traceback" not in done.stderr

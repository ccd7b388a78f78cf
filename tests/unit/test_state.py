"""State directories: locked, and with a record that is never half written."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.errors import EnvironmentFault
from replicator.state import Identity, StateDirectory


def test_a_source_keeps_its_identity(tmp_path: Path) -> None:
    state = StateDirectory.open(tmp_path / "a" / "state")
    first = state.identity()
    state.write(Identity(first.source, "some replica"))
    state.close()
    again = StateDirectory.open(tmp_path / "a" / "state")
    assert again.identity() == Identity(first.source, "some replica")
    again.close()


def test_a_second_process_is_told_what_to_do(tmp_path: Path) -> None:
    state = StateDirectory.open(tmp_path / "state")
    with pytest.raises(EnvironmentFault, match=r"in use by another rsyncfs: .*--state"):
        StateDirectory.open(tmp_path / "state")
    state.close()
    StateDirectory.open(tmp_path / "state").close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"replica": null}', b"\xff"])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    state = StateDirectory.open(tmp_path / "state")
    (tmp_path / "state" / "identity.json").write_bytes(content)
    with pytest.raises(EnvironmentFault, match=r"identity\.json"):
        state.identity()
    state.close()


def test_no_half_written_record_is_left_when_the_disk_does_not_take_it(tmp_path: Path) -> None:
    state = StateDirectory.open(tmp_path / "state")
    before = state.identity()
    (tmp_path / "state" / "identity.new").mkdir()
    with pytest.raises(EnvironmentFault, match="cannot write"):
        state.write(Identity("other"))
    assert state.identity() == before
    state.close()


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EnvironmentFault, match="choose another with --state"):
        StateDirectory.open(tmp_path / "file" / "state")

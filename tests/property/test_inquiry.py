"""Questions and answers between epochs: whatever a peer sends is an answer or a RemoteError, never anything else."""

from __future__ import annotations

import contextlib
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.answers import Answers
from replicator.errors import RemoteError
from replicator.link import inquiry
from replicator.mirror.mirror import Mirror
from replicator.model import FileId

ids = st.builds(FileId, *[st.integers(0, 2**63 - 1)] * 4)
names = st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b".."))
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text("a0./\0\x1b€", max_size=9),
    ids.map(FileId.text),
)
keys = st.sampled_from(
    ["op", "directories", "items", "ids", "differences", "id", "kind", "name", "names", "error", "x"]
)
json = st.recursive(odd, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4))
bodies = st.dictionaries(keys, json, max_size=4)


class Nothing:
    """A mirror that has nothing."""

    def names(self, id: FileId) -> list[bytes]:
        raise KeyError(id)

    def digest(self, id: FileId) -> Any:
        raise KeyError(id)

    def nameless(self, most: int) -> list[FileId]:
        return []


@given(bodies)
def test_an_answer_is_understood_or_refused(body: dict[str, Any]) -> None:
    for read in (inquiry.refusal, inquiry.directories, inquiry.ids, inquiry.differences):
        with contextlib.suppress(RemoteError):
            read(body)


@given(bodies, st.sampled_from(["names", "nameless", "compare", None]))
def test_a_question_is_answered_or_refused(body: dict[str, Any], op: str | None) -> None:
    with contextlib.suppress(RemoteError):
        Answers(cast(Mirror, Nothing())).answer({**body, "op": op} if op else body)


@given(st.lists(st.tuples(ids, st.lists(names, max_size=3)), max_size=3))
def test_names_come_through(told: list[tuple[FileId, list[bytes]]]) -> None:
    body = {"directories": [[id.text(), [name.decode("latin-1") for name in inside]] for id, inside in told]}
    assert inquiry.directories(body) == told


@given(ids, names)
def test_differences_come_through(id: FileId, name: bytes) -> None:
    of_inode = {"id": id.text(), "kind": "size"}
    of_name = {"id": id.text(), "kind": "name missing", "name": name.decode("latin-1")}
    assert inquiry.differences({"differences": [of_inode, of_name]}) == [
        (id, "size", None),
        (id, "name missing", name),
    ]


@pytest.mark.parametrize(
    "entry",
    [
        {"id": "1.0.2", "kind": "size"},
        {"id": "1.0.2.3", "kind": "\x1b[2J"},
        {"id": "1.0.2.3", "kind": "name missing", "name": "../etc/passwd"},
        {"id": "1.0.2.3", "kind": "name missing", "name": "€"},
        {"id": "1.0.2.3"},
        [],
    ],
)
def test_a_lying_peer_is_told_off(entry: Any) -> None:
    with pytest.raises(RemoteError):
        inquiry.differences({"differences": [entry]})

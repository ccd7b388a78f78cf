"""Questions and answers between epochs: whatever a peer sends is an answer or a RemoteError, never anything else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.answers import Answers
from replicator.blocks import DIGEST, Span, Verdict
from replicator.errors import RemoteError
from replicator.link import inquiry
from replicator.mirror.mirror import Mirror
from replicator.model import Extent, FileId, Slot
from replicator.verify.digests import names_digest
from replicator.work import Worker

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
    ["op", "directories", "items", "ids", "found", "missing", "kinds", "names", "to", "differ", "id", "error", "x"]
)
json = st.recursive(odd, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4))
bodies = st.dictionaries(keys, json, max_size=4)


class Nothing:
    """A mirror that has nothing, and its inspection."""

    @property
    def inspection(self) -> Nothing:
        return self

    def names(self, id: FileId) -> dict[bytes, bytes]:
        raise KeyError(id)

    def count(self, place: Slot, most: int) -> int:
        return 0

    def attributes(self, id: FileId) -> Any:
        raise KeyError(id)

    def open_content(self, id: FileId) -> int:
        raise KeyError(id)

    def open_directory(self, id: FileId) -> int:
        raise KeyError(id)

    def nameless(self, most: int) -> list[FileId]:
        return []


class AtOnce:
    """A worker that does not let anybody wait."""

    def submit(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        done(job())


def answers() -> Answers:
    return Answers(cast(Mirror, Nothing()), cast(Worker, AtOnce()))


SPAN = Span(8192, 8192 * 4, 8192, (Extent(16384, 8192),), bytes(2 * DIGEST))


@given(bodies)
def test_an_answer_is_understood_or_refused(body: dict[str, Any]) -> None:
    for read in (inquiry.refusal, inquiry.directories, inquiry.ids):
        with contextlib.suppress(RemoteError):
            read(body)


@given(
    st.one_of(bodies, st.fixed_dictionaries({"found": st.lists(st.dictionaries(keys, json, max_size=3), max_size=2)}))
)
def test_findings_are_understood_or_refused(body: dict[str, Any]) -> None:
    for spans in ([], [None], [SPAN], [SPAN, None]):
        with contextlib.suppress(RemoteError):
            assert len(inquiry.findings(body, spans)) == len(spans)


items = st.one_of(
    json,
    st.fixed_dictionaries(
        {"id": ids.map(FileId.text)},
        optional={
            "is": json,
            "names": json,
            "blocks": st.one_of(json, st.just(SPAN.tree()), st.dictionaries(st.sampled_from(list(SPAN.tree())), odd)),
        },
    ),
)


@given(bodies, st.sampled_from(["names", "nameless", "compare", None]), st.none() | st.lists(items, max_size=2))
def test_a_question_is_answered_or_refused(body: dict[str, Any], op: str | None, what: list[Any] | None) -> None:
    told: list[dict[str, Any]] = []
    question = {**body, "op": op} if op else body
    if what is not None:
        question["items"] = what
    try:
        answers().answer(question, told.append)
    except RemoteError:
        assert told == []
    else:
        assert len(told) == 1


@given(st.lists(ids, min_size=1, max_size=3), st.dictionaries(st.binary(min_size=1, max_size=3), ids, max_size=3))
def test_a_directory_that_is_not_there_has_no_names(asked: list[FileId], names: dict[bytes, FileId]) -> None:
    """If the sender thinks otherwise, it must hear so: the replica was told of the directory, or will be, without."""
    digest = names_digest(sorted(names), b"".join(names[name].wide() for name in sorted(names)))
    told: list[dict[str, Any]] = []
    question = {"op": "names", "directories": [[id.text(), digest] for id in asked]}
    answers().answer(question, told.append)
    assert inquiry.directories(orjson.loads(orjson.dumps(told[0]))) == ([(id, []) for id in asked] if names else [])


def test_who_asks_for_too_much_at_once_is_refused() -> None:
    class Never:
        def submit(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
            pass

    asked = Answers(cast(Mirror, Nothing()), cast(Worker, Never()))
    question = {"op": "compare", "items": [{"id": "0.0.1.1"}]}
    for _ in range(16):
        asked.answer(question, lambda body: None)
    with pytest.raises(RemoteError):
        asked.answer(question, lambda body: None)
    asked.begin()  # who comes anew does not pay for those before
    asked.answer(question, lambda body: None)


@given(st.lists(st.tuples(ids, st.lists(names, max_size=3)), max_size=3))
def test_names_come_through(told: list[tuple[FileId, list[bytes]]]) -> None:
    body = {"directories": [[id.text(), [name.decode("latin-1") for name in inside]] for id, inside in told]}
    assert inquiry.directories(body) == told


@given(names, names)
def test_findings_come_through(name: bytes, inner: bytes) -> None:
    told = [
        {"missing": True},
        {"kinds": ["mode", "size"]},
        {"names": [[[name.decode("latin-1"), inner.decode("latin-1")], "name only on the replica"]]},
        {"to": 8192 * 4, "differ": [8192, 8192]},
        {"error": "the disk is sick"},
    ]
    found = inquiry.findings({"found": told}, [SPAN, None, None, SPAN, SPAN])
    assert found == [
        inquiry.Finding(missing=True),
        inquiry.Finding(kinds=("mode", "size")),
        inquiry.Finding(names=(((name, inner), "name only on the replica"),)),
        inquiry.Finding(verdict=Verdict(8192 * 4, (Extent(8192, 8192),))),
        inquiry.Finding(error="the disk is sick"),
    ]


@pytest.mark.parametrize(
    "entry",
    [
        {"kinds": ["\x1b[2J"]},
        {"names": [[["../etc/passwd"], "missing"]]},
        {"names": [[["€"], "missing"]]},
        {"names": [[[], "missing"]]},
        {"to": 8192 * 5},
        {"to": 8192},
        {"differ": [8192, 8192]},
        {"to": 8192 * 4, "differ": [0, 8192]},
        {"to": 8192 * 4, "differ": [8192 * 3, 8193]},
        {"to": 8192 * 2, "differ": [8192 * 2, 1]},
        {"else": 1},
        {},
        [],
    ],
)
def test_a_lying_peer_is_told_off(entry: Any) -> None:
    with pytest.raises(RemoteError):
        inquiry.findings({"found": [entry]}, [SPAN])


def test_content_that_was_not_asked_for_is_not_heard() -> None:
    with pytest.raises(RemoteError):
        inquiry.findings({"found": [{"to": 8192 * 4}]}, [None])
    with pytest.raises(RemoteError):
        inquiry.findings({"found": []}, [SPAN])

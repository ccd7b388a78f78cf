"""What a set of kept programs is signed with."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.capture.kept import Build, KeptProgram, Signature, digest
from replicator.capture.object import MapSpec, Object

BUILD = Build("programs", "sensor", "filesystem", "state", "boot")
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
signatures = st.builds(
    Signature,
    st.builds(Build, words, words, words, words, words),
    st.lists(st.builds(KeptProgram, words, st.integers(0, 127), words, st.integers(0, 2)), max_size=5).map(tuple),
    st.lists(st.tuples(st.integers(0, 127), words, st.booleans()), max_size=5).map(tuple),
    st.lists(words, max_size=5).map(tuple),
)


@given(signatures)
def test_a_signature_is_read_as_it_was_written(signature: Signature) -> None:
    assert Signature.load(signature.dump()) == signature


@given(st.one_of(st.binary(max_size=60), signatures.map(Signature.dump)), st.integers(0, 200))
def test_anything_else_is_refused(data: bytes, cut: int) -> None:
    damaged = data[:cut] + data[cut + 1 :]
    try:
        Signature.load(damaged)
    except ValueError:
        return
    assert damaged.startswith(b"{")


@pytest.mark.parametrize("data", [b"[]", b"{}", b"null", b'{"build": {}}', b'{"build": {"x": 1}, "programs": []}'])
def test_what_another_version_wrote_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="signature"):
        Signature.load(data)


def test_the_same_build_is_no_difference_and_any_other_is_said() -> None:
    assert BUILD.difference(BUILD) is None
    said = {BUILD.difference(replace(BUILD, **{field.name: "other"})) for field in fields(Build)}
    assert None not in said
    assert len(said) == len(fields(Build))


def test_all_that_decides_what_is_loaded_is_in_the_digest() -> None:
    made = Object((MapSpec("events", 27, 0, 0, 4096, 0),), {"first": bytes(16)})
    other = Object(made.maps, {"first": bytes(8) + b"\1" * 8})
    sized = Object((made.maps[0]._replace(max_entries=8192),), made.programs)
    digests = [
        digest("text", made, {"events": 1}),
        digest("text2", made, {"events": 1}),
        digest("text", other, {"events": 1}),
        digest("text", sized, {"events": 1}),
        digest("text", made, {"events": 2}),
        digest("text", made, {"events": 1, "spares": None}),
    ]
    assert len(set(digests)) == len(digests)
    assert digest("text", Object.load(made.dump()), {"events": 1}) == digests[0]

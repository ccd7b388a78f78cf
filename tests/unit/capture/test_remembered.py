"""Answers about types that are remembered: the same as the types give, and not those of other types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.capture.btf import Btf, BtfError, Types
from replicator.capture.remembered import RememberedTypes
from tests.unit.capture.made_btf import Maker, kernel

NAMES = st.sampled_from(["folio", "file", "file_t", "index", "alone", "flags", "vfs_write", "folio_made", "I_BAD", "x"])
QUESTIONS: dict[str, Callable[[Types, str, str], object]] = {
    "member": lambda types, name, other: types.member(name, other),
    "typedef": lambda types, name, _: types.has_typedef(name),
    "tracepoint": lambda types, name, _: types.tracepoint(name),
    "enumerator": lambda types, name, _: types.enumerator(name),
    "function": lambda types, name, _: types.function(name),
}


def module() -> bytes:
    base = kernel()
    made = Maker(first=base.next, string_base=len(base.strings))
    made.record("extra", 8, ("count", 1, 32))
    return made.blob()


@pytest.fixture
def unparsed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def parse(*_: object) -> Btf:
            raise AssertionError("the types were gone through again")

        monkeypatch.setattr(Btf, "of_blobs", parse)

    return forbid


@given(st.lists(st.tuples(st.sampled_from(sorted(QUESTIONS)), NAMES, NAMES), max_size=12))
def test_answers_are_those_of_the_types_now_and_at_the_next_start(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, str, str]]
) -> None:
    directory, blobs = tmp_path_factory.mktemp("cache"), {"": kernel().blob()}
    for _ in range(2):
        types = RememberedTypes(blobs, directory)
        for question, name, other in asked:
            ask = QUESTIONS[question]
            assert ask(types, name, other) == ask(Btf(blobs[""]), name, other)
        types.keep()


def test_the_next_start_does_not_go_through_the_types(tmp_path: Path, unparsed: Callable[[], None]) -> None:
    blobs = {"": kernel().blob(), "extra": module()}
    first = RememberedTypes(blobs, tmp_path)
    found = first.function("vfs_write"), first.member("extra", "count"), first.member("folio", "nothing")
    first.keep()
    unparsed()
    second = RememberedTypes(blobs, tmp_path)
    assert (second.function("vfs_write"), second.member("extra", "count"), second.member("folio", "nothing")) == found


def test_other_types_have_other_answers(tmp_path: Path) -> None:
    first = RememberedTypes({"": kernel().blob()}, tmp_path)
    assert first.member("extra", "count") is None
    first.keep()
    assert RememberedTypes({"": kernel().blob(), "extra": module()}, tmp_path).member("extra", "count") is not None


def test_damaged_answers_do_not_count(tmp_path: Path) -> None:
    blobs = {"": kernel().blob()}
    types = RememberedTypes(blobs, tmp_path)
    assert types.member("folio", "flags") is not None
    types.keep()
    (place,) = tmp_path.glob("types-*")
    whole = place.read_bytes()
    for cut in (0, 15, len(whole) - 1):
        place.write_bytes(whole[:cut])
        assert RememberedTypes(blobs, tmp_path).member("folio", "flags") == types.member("folio", "flags")
    place.write_bytes(whole.replace(b"[0,", b"[8,"))
    assert RememberedTypes(blobs, tmp_path).member("folio", "flags") == types.member("folio", "flags")


def test_malformed_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BtfError):
        RememberedTypes({"": kernel().blob()[:40]}, tmp_path)

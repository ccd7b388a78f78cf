"""Short forms of what both sides have: different for what differs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicator.model import WIDE, FileId
from replicator.verify.digests import UNKNOWN, names_digest

IDS = st.builds(FileId, st.just(0), st.integers(0, 2), st.integers(1, 300), st.integers(0, 2)).map(FileId.wide)
DIRECTORIES = st.dictionaries(
    st.binary(min_size=1, max_size=4).filter(lambda name: b"/" not in name), IDS | st.just(UNKNOWN), max_size=4
).map(lambda names: dict(sorted(names.items())))


@given(DIRECTORIES, DIRECTORIES)
def test_the_digest_of_names_is_that_of_the_names_and_what_they_mean(
    one: dict[bytes, bytes], other: dict[bytes, bytes]
) -> None:
    first, second = (names_digest(names, b"".join(names.values())) for names in (one, other))
    assert (first == second) == (one == other)


def test_the_wide_form_is_read_back() -> None:
    id = FileId(0, 5, 2**40, 7)
    assert len(id.wide()) == WIDE
    assert FileId.of_wide(id.wide()) == id

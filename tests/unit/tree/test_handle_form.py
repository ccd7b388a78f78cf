"""The forms of file handles, byte by byte, and there and back again."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.model import FileId
from replicator.tree.handle_form import ARRAYS, FORMS

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("fstype", "kind", "handle", "id"),
    [
        ("ext4", 1, struct.pack("=II", 12, 7), FileId(0, 0, 12, 7)),
        ("xfs", 1, struct.pack("=II", 131, 7), FileId(0, 0, 131, 7)),
        ("xfs", 0x81, struct.pack("=QI", 2**40 + 3, 7), FileId(0, 0, 2**40 + 3, 7)),
        ("btrfs", 0x4D, struct.pack("=QQI", 257, 5, 7), FileId(0, 5, 257, 7)),
        ("tmpfs", 1, struct.pack("=III", 7, 3, 2), FileId(0, 0, 2 * 2**32 + 3, 7)),
    ],
)
def test_known_handles(fstype: str, kind: int, handle: bytes, id: FileId) -> None:
    parse, _ = FORMS[fstype]
    assert parse(kind, handle) == id


@given(ino=U64, root=U64, gen=U32)
def test_what_is_built_is_read_back(ino: int, root: int, gen: int) -> None:
    for fstype, (parse, build) in FORMS.items():
        id = FileId(0, root if fstype == "btrfs" else 0, ino % 2**32 if fstype == "ext4" else ino, gen)
        assert parse(*build(id)) == id


@given(kind=st.integers(-1, 0x100), handle=st.binary(max_size=40))
def test_a_handle_is_read_or_refused(kind: int, handle: bytes) -> None:
    for parse, build in FORMS.values():
        try:
            id = parse(kind, handle)
        except ValueError:
            continue
        assert parse(*build(id)) == id


@given(ino=U64, root=U64, gen=U32)
def test_many_handles_are_read_as_one_is(ino: int, root: int, gen: int) -> None:
    assert ARRAYS.keys() == FORMS.keys()
    for fstype, (parse, build) in FORMS.items():
        forms = [build(FileId(0, root, ino % 2**32 if fstype == "ext4" else ino, gen))]
        if fstype == "xfs":
            forms.append((1, struct.pack("=II", ino % 2**32, gen)))
        for kind, handle in forms:
            form = ARRAYS[fstype][kind, len(handle)]
            (row,) = np.frombuffer(handle, form)
            read = FileId(0, int(row["root"]) if "root" in (form.names or ()) else 0, int(row["ino"]), int(row["gen"]))
            assert read == parse(kind, handle)
        assert len(forms) == len(ARRAYS[fstype])

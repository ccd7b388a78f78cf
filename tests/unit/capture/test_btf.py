"""BTF, made by hand: what the parser must find, and what it must refuse."""

from __future__ import annotations

import pytest

from replicator.capture.btf import Btf, BtfError, Member
from tests.unit.capture.made_btf import ENUM, PTR, Maker, kernel


def test_members_are_found_where_they_are() -> None:
    btf = Btf(kernel().blob())
    assert btf.member("folio", "flags") == Member(0, "u32")
    assert btf.member("folio", "inner") == Member(16, None)
    assert btf.member("file", "f_folio") == Member(8, "void *")


def test_members_of_anonymous_parts_count_from_the_outside() -> None:
    btf = Btf(kernel().blob())
    assert btf.member("folio", "index") == Member(8, "s64")
    assert btf.member("folio", "share") == Member(16, "u32")
    assert btf.member("folio", "alone") == Member(8, "u32")


def test_a_typedef_of_a_struct_can_be_asked() -> None:
    assert Btf(kernel().blob()).member("file_t", "flags") == Member(0, "u32")


def test_what_is_not_there_is_none() -> None:
    btf = Btf(kernel().blob())
    assert btf.member("folio", "nothing") is None
    assert btf.member("nothing", "flags") is None
    assert btf.tracepoint("nothing") is None
    assert btf.enumerator("I_NOTHING") is None
    assert btf.function("vfs_nothing") is None


def test_a_bit_field_has_no_address() -> None:
    with pytest.raises(BtfError, match="bit-field"):
        Btf(kernel().blob()).member("file", "bits")


def test_a_tracepoints_arguments_are_spelled_without_qualifiers() -> None:
    assert Btf(kernel().blob()).tracepoint("folio_made") == ("struct folio *", "loff_t")


def test_enumerators_and_functions() -> None:
    btf = Btf(kernel().blob())
    assert btf.enumerator("I_NEW") == 1
    assert btf.enumerator("I_BAD") == 0xFFFFFFFF
    assert btf.function("vfs_write") is not None


def test_enumerators_of_modules_count_too() -> None:
    base = kernel()
    btf = Btf(base.blob())
    assert btf.enumerator("EXTENT_LOCKED") is None
    module = Maker(first=base.next, string_base=len(base.strings))
    extent_bits = (module.name("EXTENT_LOCKED"), 2, module.name("EXTENT_DELALLOC"), 32)  # the module's first strings
    module.add(ENUM, "", 4, *extent_bits, count=2)
    btf.add(module.blob(), "btrfs")
    assert (btf.enumerator("EXTENT_LOCKED"), btf.enumerator("EXTENT_DELALLOC")) == (2, 32)
    assert btf.enumerator("I_NEW") == 1


def test_a_number_in_a_struct_of_its_own_is_read_as_that_number() -> None:
    maker = kernel()
    state = maker.record("state_flags", 4, ("__state", 1, 0))
    maker.record("inode", 8, ("i_state", state, 32))
    assert Btf(maker.blob()).member("inode", "i_state") == Member(4, "u32")


def test_modules_build_on_vmlinux_and_not_on_one_another() -> None:
    base = kernel()
    btf = Btf(base.blob())
    for name, offset in (("ext4_sb", 32), ("xfs_sb", 96)):
        module = Maker(first=base.next, string_base=len(base.strings))
        inner = module.record(f"{name}_inner", 8, ("depth", 1, 0))
        pointer = module.add(PTR, "", inner)
        module.record(name, 64, (f"{name}_count", 1, offset), (f"{name}_inner", pointer, 0))
        module.tracepoint(f"{name}_changed", pointer)
        btf.add(module.blob(), name)
    assert btf.member("ext4_sb", "ext4_sb_count") == Member(4, "u32")
    assert btf.member("xfs_sb", "xfs_sb_count") == Member(12, "u32")
    assert btf.member("xfs_sb", "xfs_sb_inner") == Member(0, "void *")
    assert btf.tracepoint("ext4_sb_changed") == ("struct ext4_sb_inner *",)
    assert btf.tracepoint("xfs_sb_changed") == ("struct xfs_sb_inner *",)


@pytest.mark.parametrize("cut", [0, 10, 23, 40, -1])
def test_what_is_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(BtfError):
        Btf(kernel().blob()[:cut])


def test_another_magic_is_refused() -> None:
    with pytest.raises(BtfError):
        Btf(b"\0\0" + kernel().blob()[2:])

"""What is asked of the kernel's types is found in the sources, and answered from BTF."""

from __future__ import annotations

import pytest

from replicator.capture import layout, vfs
from replicator.capture.btf import Btf
from replicator.capture.layout import Access, FunctionHook, Hook
from replicator.capture.tracepoint import FAMILIES, STAND_INS
from replicator.resources import ebpf_directory
from tests.unit.capture.made_btf import kernel

SOURCE = """
/* FIELD(comment, ignored, x) */
#define FIELD(type, member, pointer) whatever(type, member)
INTERRUPTS(other_made)
HOOK(page, folio_made, struct folio *, ...)
{
	void *folio = ARGUMENT(void *, 0);
	u64 index = FIELD(folio, index, ADDRESS(folio, inner, folio)); // FIELD(comment, too, x)
#if HAS_FIELD(newer, thing)
	index = FIELD(newer, thing, folio);
#endif
	return index == ENUMERATOR(I_NEW) || index == ENUMERATOR(I_OLD, 7);
}
"""


def test_uses_are_found_but_not_in_comments_and_definitions() -> None:
    assert layout.accesses(SOURCE) == [
        Access("FIELD", "folio", "index"),
        Access("ADDRESS", "folio", "inner"),
        Access("HAS_FIELD", "newer", "thing"),
        Access("FIELD", "newer", "thing"),
    ]


def test_constants_say_offset_type_and_presence() -> None:
    lines = layout.constants([SOURCE], Btf(kernel().blob())).splitlines()
    assert "#define RSYNCFS_OFFSET_folio__index 8UL" in lines
    assert "#define RSYNCFS_TYPE_folio__index s64" in lines
    assert "#define RSYNCFS_HAS_folio__index 1" in lines
    assert "#define RSYNCFS_HAS_newer__thing 0" in lines
    assert "#define RSYNCFS_ENUM_I_NEW(...) (1)" in lines
    assert "#define RSYNCFS_ENUM_I_OLD(...) (__VA_ARGS__)" in lines
    assert len(lines) == len(set(lines))


def test_missing_names_what_is_read_without_asking() -> None:
    btf = Btf(kernel().blob())
    assert layout.missing(SOURCE, btf) == []
    assert layout.missing("FIELD(folio, gone, x); FIELD(folio, inner, x); ADDRESS(file, bits, x)", btf) == [
        "folio.gone",
        "folio.inner (not a number or pointer)",
        "file.bits (bits is a bit-field and has no address)",
    ]
    assert layout.missing("ENUMERATOR(I_GONE)", btf) == ["I_GONE"]


def test_a_hook_is_judged_by_the_tracepoints_arguments() -> None:
    btf = Btf(kernel().blob())
    (hook,) = layout.hooks(SOURCE)
    assert hook == Hook("page", "folio_made", ("struct folio *", "..."))
    assert layout.hooks(SOURCE.replace("other_made", "folio_made"))[0].interrupts
    assert hook.objection(btf) is None
    assert Hook("page", "folio_made", ("struct folio *", "loff_t")).objection(btf) is None
    assert Hook("page", "folio_made", ("struct folio *",)).objection(btf) == (
        "this kernel passes (struct folio *, loff_t), expected was (struct folio *)"
    )
    assert "struct page *" in str(Hook("page", "folio_made", ("struct page *", "...")).objection(btf))
    assert Hook("page", "gone", ("...",)).objection(btf) == "this kernel has no such tracepoint"


@pytest.mark.parametrize("source", ["\tHOOK(a, b, int)\n", "HOOK(a, b)\nHOOK(a, b)\n"])
def test_a_hook_that_would_be_overlooked_is_an_error(source: str) -> None:
    with pytest.raises(ValueError, match="HOOK"):
        layout.hooks(source)


def test_every_hook_of_the_sources_bears_its_file_as_family() -> None:
    stand_ins = [several for instead in STAND_INS.values() for several in instead.values()]
    families = {family for several in [*FAMILIES.values(), *stand_ins, vfs.FAMILIES] for family in several}
    assert {path.stem for path in ebpf_directory().glob("*.c")} == families
    for family in families:
        text = (ebpf_directory() / f"{family}.c").read_text()
        found: list[Hook | FunctionHook] = [*layout.hooks(text), *layout.function_hooks(text)]
        assert found
        assert {hook.family for hook in found} == {family}

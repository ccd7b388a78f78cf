"""Hooks of functions are found in the sources, judged by BTF, and get the programs that call them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from replicator.capture import layout, source
from replicator.capture.btf import Btf
from replicator.capture.layout import FunctionHook
from tests.unit.capture.made_btf import PTR, Maker, kernel

SOURCE = """
AFTER(family, ext4, ext4_write, struct folio *)
{
	return GIVEN(u64, 0) + call->result;
}
ENTRY(family, any, begun, struct folio *, loff_t)
{
	return 0;
}
INSTEAD(newer, older)
AFTER(family, any, older, struct folio *)
{
	return 0;
}
OPTIONAL(newer)
AFTER(family, any, newer, struct folio *)
{
	return 0;
}
"""
HOOKS = {hook.function: hook for hook in layout.function_hooks(SOURCE)}


def types(*functions: str, extra: bool = False) -> Btf:
    """Functions that take (folio, position), or (another pointer, folio, position)."""
    maker = kernel()
    add(maker, functions, extra)
    return Btf(maker.blob())


def add(maker: Maker, functions: tuple[str, ...], extra: bool) -> None:
    folio = maker.record("folio_list", 8)
    other = maker.add(PTR, "", folio)
    pointer, loff = 8, 3  # as kernel() numbers them
    for name in functions:
        first = [("other", other)] if extra else []
        maker.function(name, loff, *first, ("folio", pointer), ("position", loff))


def test_the_sources_are_read() -> None:
    assert HOOKS["ext4_write"] == FunctionHook("family", "ext4", "ext4_write", ("struct folio *",), entry=False)
    assert HOOKS["begun"] == FunctionHook("family", "any", "begun", ("struct folio *", "loff_t"), entry=True)
    assert HOOKS["older"].instead == "newer"
    assert HOOKS["newer"].optional


def test_arguments_are_found_by_their_types_wherever_they_stand() -> None:
    hook = HOOKS["begun"]
    assert hook.positions(("struct folio *", "loff_t")) == (0, 1)
    assert hook.positions(("struct mnt_idmap *", "struct folio *", "int", "loff_t")) == (1, 3)
    assert hook.positions(("loff_t", "struct folio *")) is None


def test_a_function_is_judged() -> None:
    hook = HOOKS["begun"]
    assert hook.objection(types()) == "this kernel has no such function"
    assert hook.objection(types("begun")) is None
    assert hook.objection(types("begun", extra=True)) is None
    wrong = FunctionHook("family", "any", "begun", ("struct file *",), entry=False)
    assert wrong.objection(types("begun")) == (
        "this kernel passes (struct folio *, loff_t), expected was (struct file *)"
    )


def test_one_of_two_is_taken_and_what_a_kernel_cannot_do_is_not_missed() -> None:
    assert HOOKS["older"].superfluous(types("older", "newer"))
    assert not HOOKS["older"].superfluous(types("older"))
    assert HOOKS["newer"].superfluous(types("older"))
    assert not HOOKS["newer"].superfluous(types("newer"))
    assert not HOOKS["begun"].superfluous(types())


def test_functions_of_modules_say_where_they_are() -> None:
    base = kernel()
    btf = Btf(base.blob())
    module = Maker(first=base.next, string_base=len(base.strings))
    id = module.function("ext4_write", 3, ("folio", 8))
    btf.add(module.blob(), "ext4")
    found = btf.function("ext4_write")
    assert found is not None
    assert (found.id, found.module, found.arguments, found.result) == (id, "ext4", ("struct folio *",), "loff_t")
    assert btf.function("vfs_write") is not None
    assert btf.function("vfs_writ") is None


def test_two_functions_of_one_name_are_none() -> None:
    """A static function that exists twice: which one would be hooked is not known."""
    base = kernel()
    btf = Btf(base.blob())
    for name in ("one", "other"):
        module = Maker(first=base.next, string_base=len(base.strings))
        module.function("helper", 3, ("folio", 8))
        btf.add(module.blob(), name)
    assert btf.function("helper") is None


def test_a_hook_that_would_be_overlooked_is_an_error() -> None:
    for text in (
        "AFTER(family, any, twice, int)\nAFTER(family, any, twice, int)\n",
        "AFTER(family, any, broken,\n      struct folio *)\n",
    ):
        with pytest.raises(ValueError, match="on a line of its own"):
            layout.function_hooks(text)


def test_only_what_concerns_the_filesystem_is_judged() -> None:
    judged = source.judge(SOURCE, "xfs", types("ext4_write", "begun", "older"))
    assert {hook.function for hook in judged if isinstance(hook, FunctionHook)} == {"begun", "older"}
    assert set(judged.values()) == {None}


def test_every_body_gets_its_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*source.HEADERS, "notes.h", "vfs.h"):
        (tmp_path / name).write_text("")
    (tmp_path / "family.c").write_text(SOURCE)
    monkeypatch.setattr(source, "ebpf_directory", lambda: tmp_path)
    made = source.assemble(["family"], "ext4", types("ext4_write", "begun", "older", extra=True))
    assert {hook.function for hook in made.hooks if isinstance(hook, FunctionHook)} == {"ext4_write", "begun", "older"}
    assert made.excluded == ()
    programs = set(re.findall(r"^int (\w+)\(", made.text, re.MULTILINE))
    hook = HOOKS["ext4_write"]
    wanted = {source.program_name(hook, spare) for spare in range(1 + source.MOST_SPARES)}
    wanted |= set(source.probe_programs(hook))
    assert wanted <= programs
    assert source.probe_programs(HOOKS["begun"])[1] == ""
    # the folio is the second argument here, and the result stands behind all three
    body = made.text[made.text.index("int fexit__ext4_write") :].split("\n}\n")[0]
    assert "call.argument[0] = words[1];" in body
    assert "call.result = words[3];" in body

"""Where functions lie, from a made-up /proc/kallsyms."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.capture.symbols import code_of
from replicator.errors import EnvironmentFault

KALLSYMS = """\
ffffffff81000000 T iomap_dio_complete_work
ffffffff81000030 T iomap_dio_complete
ffffffff81000030 T __pfx_alias
ffffffff81000160 t iomap_dio_rw
ffffffffc0000000 t theirs\t[module]
"""


def test_a_function_ends_where_the_next_symbol_begins(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    path.write_text(KALLSYMS)
    assert code_of("iomap_dio_complete", path) == (0xFFFFFFFF81000030, 0x130)
    assert code_of("iomap_dio_complete_work", path) == (0xFFFFFFFF81000000, 0x30)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (KALLSYMS.replace("ffffffff81", "0000000000"), "kptr_restrict"),
        ("ffffffff81000000 T other\n", "no function iomap_dio_complete"),
        ("ffffffff81000000 T iomap_dio_complete\n", "how long"),
    ],
)
def test_what_cannot_be_found_is_said(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "kallsyms"
    path.write_text(text.replace("0000000000000030", "0000000000000000"))
    with pytest.raises(EnvironmentFault, match=said):
        code_of("iomap_dio_complete", path)


def test_a_kernel_without_symbols_is_said(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="CONFIG_KALLSYMS"):
        code_of("iomap_dio_complete", tmp_path / "nothing")

"""What comes out of the machines, and the page that is made of it."""

from __future__ import annotations

import pytest

from tests.kernel.coverage import document
from tests.kernel.machine import Run
from tests.kernel.outcome import Outcome, Verdict, outcomes

RELEASES = {"6.1": "6.1.0-1-amd64", "7.3": "7.3.4+deb13-amd64"}


def outcome(row: str, verdict: Verdict, filesystem: str = "ext4", table: str = "write_paths") -> Outcome:
    return Outcome(table, row, filesystem, verdict, 1.5)


def test_a_line_says_all_of_an_outcome() -> None:
    told = Outcome("tree_names", "odd names: newline", "xfs", Verdict.FAILED, 2.25, 'two\nlines, ünd a "quote"')
    assert list(outcomes(told.line() * 2)) == [told, told]


def test_a_line_that_was_cut_is_no_outcome() -> None:
    whole = outcome("write path: clone", Verdict.PASSED)
    assert list(outcomes(whole.line() + whole.line()[:-5])) == [whole]


def test_the_page_has_a_mark_for_each_kernel() -> None:
    clone, truncate = "write path: clone", "write path: truncate"
    results = {
        (RELEASES["6.1"], "vfs-fexit"): [outcome(clone, Verdict.REFUSED), outcome(truncate, Verdict.PASSED)],
        (RELEASES["7.3"], "vfs-fexit"): [outcome(clone, Verdict.FAILED), outcome(truncate, Verdict.PASSED)],
        (RELEASES["6.1"], "tracepoint"): [outcome(truncate, Verdict.PASSED)],
    }
    lines = document(RELEASES, ["vfs-fexit", "tracepoint"], results).splitlines()
    assert "| 7.3 | 7.3.4+deb13-amd64 |" in lines
    clones = lines.index("| clone | –✗ | ?? | ?? | ?? | ?? | ?? |")
    assert lines[clones + 1] == "| truncate | ✓✓ | ✓? | ?? | ?? | ?? | ?? |"


def test_the_page_is_the_same_for_the_same_outcomes() -> None:
    rows = [outcome(f"row {number}", Verdict.PASSED, "btrfs", "attributes") for number in range(20)]
    one = document(RELEASES, ["tracepoint"], {(RELEASES["6.1"], "tracepoint"): rows})
    slower = [Outcome(row.table, row.row, row.filesystem, row.verdict, 99.0, "other words") for row in rows]
    assert document(RELEASES, ["tracepoint"], {(RELEASES["6.1"], "tracepoint"): slower}) == one


@pytest.mark.parametrize("variables", [{}, {"A": "1", "B": "two"}])
def test_a_run_is_a_line_that_the_guest_can_split(variables: dict[str, str]) -> None:
    line = Run("guest", variables, ["tests/kernel/guest", "tests/native/test_attributes.py"], ["xfs", "ext4"]).line()
    name, _, words = line.partition(":")
    settings, _, tests = words.partition("--")
    assert name == "guest"
    assert settings.split() == [f"{key}={value}" for key, value in variables.items()]
    assert tests.split() == ["--filesystems=xfs,ext4", "tests/kernel/guest", "tests/native/test_attributes.py"]

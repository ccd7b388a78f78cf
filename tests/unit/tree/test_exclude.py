"""Exclude patterns: each expectation was compared with `git check-ignore`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from replicator.errors import UsageError
from replicator.tree.exclude import Exclude

DIRECTORY, FILE = True, False

TABLE = [
    # patterns, path, is a directory, excluded
    (["*.o"], "x.o", FILE, True),
    (["*.o"], "deep/er/x.o", FILE, True),
    (["*.o"], "x.c", FILE, False),
    (["*.o"], "d.o/x.c", FILE, True),
    (["build/"], "build", DIRECTORY, True),
    (["build/"], "build", FILE, False),
    (["build/"], "a/build", DIRECTORY, True),
    (["build/"], "a/build/x", FILE, True),
    (["/build"], "build", FILE, True),
    (["/build"], "a/build", FILE, False),
    (["a/b"], "a/b", FILE, True),
    (["a/b"], "c/a/b", FILE, False),
    (["**/a/b"], "c/a/b", FILE, True),
    (["**/b"], "c/a/b", FILE, True),
    (["a/**"], "a", DIRECTORY, False),
    (["a/**"], "a/b/c", FILE, True),
    (["a/**/c"], "a/c", FILE, True),
    (["a/**/c"], "a/b/b/c", FILE, True),
    (["a/*"], "a/b/c", FILE, True),
    (["*", "!*.c"], "x.c", FILE, False),
    (["*", "!*.c"], "d/x.c", FILE, True),
    (["*", "!*/", "!*.c"], "d/x.c", FILE, False),
    (["*", "!*/", "!*.c"], "d/x.o", FILE, True),
    (["*.o", "!keep.o"], "keep.o", FILE, False),
    (["!keep.o", "*.o"], "keep.o", FILE, True),
    (["*.o", "!keep/"], "keep/x.o", FILE, True),
    (["d", "!d/x"], "d/x", FILE, True),
    (["d/*", "!d/x"], "d/x", FILE, False),
    (["?.o"], "x.o", FILE, True),
    (["?.o"], "xy.o", FILE, False),
    (["[ab].o"], "b.o", FILE, True),
    (["[!ab].o"], "b.o", FILE, False),
    ([r"\#x"], "#x", FILE, True),
    ([r"\!x"], "!x", FILE, True),
    ([r"\*.o"], "x.o", FILE, False),
    ([r"\*.o"], "*.o", FILE, True),
    (["x.o   "], "x.o", FILE, True),
    (["*.o"], "new\nline.o", FILE, True),
    (["x.o"], "x.o\n", FILE, False),
    (["/new*"], "new\nline", FILE, True),
    (["**/"], "a", DIRECTORY, True),
    (["*/", "!a/"], "a", DIRECTORY, False),
    (["*/", "!a/"], "a/b", DIRECTORY, True),
]


@pytest.mark.parametrize(("patterns", "path", "is_directory", "excluded"), TABLE)
def test_patterns_mean_what_they_mean_to_git(
    patterns: list[str], path: str, is_directory: bool, excluded: bool
) -> None:
    exclude = Exclude(patterns)
    assert exclude.matches(path.encode(), is_directory) is excluded
    assert exclude.matches(path.encode(), is_directory) is excluded, "a remembered verdict is the same"


@pytest.mark.parametrize(("patterns", "path", "is_directory", "excluded"), TABLE)
def test_git_agrees_with_the_table(
    patterns: list[str], path: str, is_directory: bool, excluded: bool, tmp_path: Path
) -> None:
    """The table's own check: a real git is asked, where there is one."""
    git = shutil.which("git")
    assert git, "the tests need git (bootstrap installs it)"
    subprocess.run([git, "init", "-q", tmp_path], check=True)
    (tmp_path / ".git/info/exclude").write_text("".join(f"{pattern}\n" for pattern in patterns))
    place = tmp_path / path
    place.parent.mkdir(parents=True, exist_ok=True)
    if is_directory:
        place.mkdir()
    else:
        place.touch()
    run = subprocess.run(
        [git, "-C", tmp_path, "check-ignore", "--no-index", "-z", "--stdin"], input=path.encode(), capture_output=True
    )
    assert run.returncode in (0, 1), run.stderr
    assert (run.returncode == 0) is excluded


def test_no_patterns_exclude_nothing() -> None:
    exclude = Exclude([])
    assert not exclude
    assert not exclude.by_path
    assert not exclude.matches(b"anything", False)


def test_the_root_is_never_excluded() -> None:
    assert not Exclude(["*"]).matches(b"", True)


def test_names_that_are_not_utf8() -> None:
    exclude = Exclude(["*.o", b"\xe9t\xe9".decode("utf-8", "surrogateescape")])
    assert exclude.matches(b"\xff\xfe.o", False)
    assert not exclude.matches(b"\xff\xfe.c", False)
    assert exclude.matches(b"\xe9t\xe9", False)
    assert exclude.matches(b"\xff/\xe9t\xe9/\xfe", False)


def test_names_in_utf8_match_by_character() -> None:
    assert Exclude(["?t?"]).matches("été".encode(), False)


@pytest.mark.parametrize(
    ("patterns", "by_path"),
    [
        (["*.o", "build/", "!keep", "**/x", "**/x/"], False),
        (["/x"], True),
        (["a/b"], True),
        (["*.o", "!a/b"], True),
        (["a/**"], True),
        (["**/a/b"], True),
    ],
)
def test_by_path_tells_whether_a_directorys_rename_matters_below(patterns: list[str], by_path: bool) -> None:
    assert Exclude(patterns).by_path is by_path


@pytest.mark.parametrize("pattern", ["", "   ", "/", "!", "!/", "# comment", "[z-a]"])
def test_a_pattern_that_can_match_nothing_is_a_usage_error(pattern: str) -> None:
    with pytest.raises(UsageError, match="exclude pattern"):
        Exclude(["*.o", pattern])

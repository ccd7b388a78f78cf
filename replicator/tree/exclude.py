"""What the user does not want replicated: patterns in gitignore syntax.

Takes the patterns in order and paths relative to the watched tree; says whether a path is excluded. As in git the last
pattern that matches decides, `!` brings back, a trailing slash means directories only, a slash elsewhere ties the
pattern to the tree's root, and what lies in an excluded directory cannot be brought back. Does no I/O: it is told
whether the path is a directory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from replicator.errors import UsageError
from replicator.model import FileId

_REMEMBERED = 1 << 15
"""How many names' (or directories') verdicts are kept."""

# Where a match that goes on below what the pattern names is marked by pathspec's regular expressions.
_BELOW = "ps_d"


class Exclude:
    """A list of patterns, the later the stronger. UsageError if one can never match anything."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self.own: dict[FileId, str] = {}
        """Directories that are excluded whatever they are called, with what they were called: rsyncfs's own."""
        self._rules = tuple(reversed([_Rule.parse(pattern) for pattern in patterns]))
        self._by_path = any(rule.by_path for rule in self._rules)
        self._judged = lru_cache(_REMEMBERED)(self._judge)
        self._directory = lru_cache(_REMEMBERED)(self._below)

    def __bool__(self) -> bool:
        """Whether there is any pattern."""
        return bool(self._rules)

    @property
    def by_path(self) -> bool:
        """Whether some pattern looks at more than the last component.

        If so, renaming a directory may change what is excluded below it.
        """
        return self._by_path

    def matches(self, path: bytes, is_directory: bool) -> bool:
        """Whether the path (relative to the tree, no slash at either end) or a directory above it is excluded.

        The tree's root itself, b"", never is.
        """
        if not self._rules or not path:
            return False
        above, _, name = path.rpartition(b"/")
        if above and self._directory(above):
            return True
        return self._judged(path if self._by_path else name, is_directory)

    def _below(self, path: bytes) -> bool:
        """`matches` for a directory, remembered: it is asked for everything in it."""
        return self.matches(path, True)

    def _judge(self, path: bytes, is_directory: bool) -> bool:
        """What the patterns say of this very path, or of a last component alone if none looks at more."""
        text = _text(path)
        for rule in self._rules:
            if rule.names(text, is_directory):
                return rule.excludes
        return False


@dataclass(frozen=True, slots=True)
class _Rule:
    regex: re.Pattern[str]
    excludes: bool
    directories_only: bool
    by_path: bool

    @classmethod
    def parse(cls, pattern: str) -> _Rule:
        text = pattern
        while text.endswith(" ") and not text.endswith("\\ "):
            text = text[:-1]
        if text.startswith("#"):
            raise UsageError(f"exclude pattern '{pattern}' is a comment: write '\\{pattern}' to mean the name")
        # The slash at the end is taken off here, for then a pattern matches exactly what it names.
        directories_only = text.endswith("/")
        body = text.rstrip("/")
        from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern  # 10 ms, and few sources have patterns

        if not body.removeprefix("!"):
            raise UsageError(f"exclude pattern {pattern!r} matches nothing: give a name, a path or a glob")
        try:
            compiled = GitIgnoreSpecPattern(body.replace("\n", _NEWLINE))
        except (ValueError, re.error) as error:
            raise UsageError(f"exclude pattern {pattern!r} is not valid gitignore syntax: {error}") from error
        if compiled.regex is None or compiled.include is None:
            raise UsageError(f"exclude pattern {pattern!r} is not valid gitignore syntax: check its brackets")
        glob = body.removeprefix("!")
        while glob.startswith("**/"):
            glob = glob.removeprefix("**/")
        return cls(compiled.regex, compiled.include, directories_only, "/" in glob)

    def names(self, text: str, is_directory: bool) -> bool:
        """Whether the pattern means this very path, not merely a directory above it."""
        if self.directories_only and not is_directory:
            return False
        match = self.regex.search(text)
        return match is not None and match.groupdict().get(_BELOW) is None


# A newline has a meaning of its own in regular expressions, and a name may hold one: this lone surrogate stands for
# it. No decoded name holds another (undecodable bytes become U+DC80 and up).
_NEWLINE = "\udc0a"


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape").replace("\n", _NEWLINE)

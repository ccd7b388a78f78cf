"""What the eBPF sources ask of the kernel's types, and the answers as C constants.

Takes the text of the sources and BTF; gives `#define`s for every FIELD, ADDRESS, CONTAINER and HAS_FIELD in the text,
and a judgement of every HOOK. Offsets come from BTF itself, so there is no compiled layout that could disagree with
the kernel's; what BTF does not have is reported, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from replicator.capture.btf import Btf, BtfError

_ACCESS = re.compile(r"\b(FIELD|ADDRESS|CONTAINER|HAS_FIELD)\((\w+), (\w+)\b")
_HOOK = re.compile(r"^HOOK\((\w+), (\w+)((?:, [^,()]+)*)\)$", re.MULTILINE)
_ENUMERATOR = re.compile(r"\bENUMERATOR\((\w+)([,)])")
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_MACRO = re.compile(r"^[ \t]*#[ \t]*define\b(?:[^\n]*\\\n)*[^\n]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Access:
    """One use of a struct member in the sources."""

    verb: str
    """FIELD, ADDRESS, CONTAINER or HAS_FIELD."""
    type: str
    member: str


@dataclass(frozen=True, slots=True)
class Hook:
    """One program of the sources: the tracepoint that it is for, and the arguments that it expects."""

    family: str
    tracepoint: str
    arguments: tuple[str, ...]

    @property
    def function(self) -> str:
        """The program's name in the compiled object."""
        return f"hook__{self.family}__{self.tracepoint}"

    def objection(self, btf: Btf) -> str | None:
        """Why this hook cannot be used on the kernel that `btf` describes; None if it can."""
        there = btf.tracepoint(self.tracepoint)
        if there is None:
            return "this kernel has no such tracepoint"
        wanted = self.arguments
        if wanted and wanted[-1] == "...":
            wanted, there = wanted[:-1], there[: len(wanted) - 1]
        if wanted != there:
            return f"this kernel passes ({', '.join(there)}), expected was ({', '.join(wanted)})"
        return None


def accesses(source: str) -> list[Access]:
    """Every use of a member in `source`, each once, in order of appearance."""
    text = _MACRO.sub("", _COMMENT.sub("", source))
    # the condition of a directive is text as well: HAS_FIELD stands only there
    return list(dict.fromkeys(Access(*match) for match in _ACCESS.findall(text)))


def hooks(source: str) -> list[Hook]:
    """Every HOOK of `source`. ValueError for one that is not on one line, or twice there."""
    text = _MACRO.sub("", _COMMENT.sub("", source))
    found = []
    for family, tracepoint, rest in _HOOK.findall(text):
        found.append(Hook(family, tracepoint, tuple(word.strip() for word in rest.split(",")[1:])))
    if len(found) != len(re.findall(r"\bHOOK\(", text)) or len(set(found)) != len(found):
        raise ValueError("a HOOK is not on a line of its own, or twice there")
    return found


def _enumerators(source: str) -> list[tuple[str, str]]:
    """Name and what follows it ("," before a fallback, or ")") of every ENUMERATOR, also in macros."""
    text = _COMMENT.sub("", source).replace("define ENUMERATOR(", "")
    return list(dict.fromkeys(_ENUMERATOR.findall(text)))


def missing(source: str, btf: Btf) -> list[str]:
    """What `source` reads and the kernel lacks: "type.member" and names of enumerators.

    Types that `source` asks HAS_FIELD about are its own care, as are enumerators with a fallback.
    """
    used = accesses(source)
    asked = {access.type for access in used if access.verb == "HAS_FIELD"}
    lacking = [name for name, then in _enumerators(source) if then == ")" and btf.enumerator(name) is None]
    for access in used:
        if access.verb == "HAS_FIELD" or access.type in asked:
            continue
        try:
            member = btf.member(access.type, access.member)
        except BtfError as fault:
            lacking.append(f"{access.type}.{access.member} ({fault})")
            continue
        if member is None:
            lacking.append(f"{access.type}.{access.member}")
        elif access.verb == "FIELD" and member.ctype is None:
            lacking.append(f"{access.type}.{access.member} (not a number or pointer)")
    return lacking


def constants(sources: Iterable[str], btf: Btf) -> str:
    """The `#define`s that `sources` need.

    RSYNCFS_HAS_, RSYNCFS_OFFSET_ and RSYNCFS_TYPE_ of every member used, RSYNCFS_ENUM_ of every enumerator.
    """
    lines: dict[str, None] = {}
    for source in sources:
        for name, _ in _enumerators(source):
            value = btf.enumerator(name)
            lines[f"#define RSYNCFS_ENUM_{name}(...) ({'__VA_ARGS__' if value is None else value})"] = None
        for access in accesses(source):
            try:
                member = btf.member(access.type, access.member)
            except BtfError:
                member = None
            name = f"{access.type}__{access.member}"
            lines[f"#define RSYNCFS_HAS_{name} {int(member is not None)}"] = None
            if member is not None:
                lines[f"#define RSYNCFS_OFFSET_{name} {member.offset}UL"] = None
                if member.ctype is not None:
                    lines[f"#define RSYNCFS_TYPE_{name} {member.ctype}"] = None
    return "\n".join(lines) + "\n"

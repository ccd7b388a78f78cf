"""What the eBPF sources ask of the kernel's types, and the answers as C constants.

Takes the text of the sources and BTF; gives `#define`s for every FIELD, ADDRESS, CONTAINER and HAS_FIELD in the text,
and a judgement of every HOOK, ENTRY and AFTER. Offsets come from BTF itself, so there is no compiled layout that could
disagree with the kernel's; what BTF does not have is reported, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from replicator.capture.btf import BtfError, Types

_ACCESS = re.compile(r"\b(FIELD|ADDRESS|CONTAINER|HAS_FIELD)\((\w+), (\w+)\b")
_HOOK = re.compile(r"^HOOK\((\w+), (\w+)((?:, [^,()]+)*)\)$", re.MULTILINE)
_FUNCTION = re.compile(r"^(ENTRY|AFTER)\((\w+), (\w+), (\w+)((?:, [^,()]+)*)\)$", re.MULTILINE)
_INSTEAD = re.compile(r"^INSTEAD\((\w+), (\w+)\)$", re.MULTILINE)
_INTERRUPTS = re.compile(r"^INTERRUPTS\((\w+)\)$", re.MULTILINE)
_OPTIONAL = re.compile(r"^OPTIONAL\((\w+)\)$", re.MULTILINE)
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
    """One body of the sources that is called at a raw tracepoint, and the arguments that it expects."""

    family: str
    tracepoint: str
    arguments: tuple[str, ...]
    interrupts: bool = False
    """Whether interrupts come there too."""

    def objection(self, btf: Types) -> str | None:
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


@dataclass(frozen=True, slots=True)
class FunctionHook:
    """One body of the sources that is called at the entry or after the return of a function of the kernel."""

    family: str
    fstype: str
    """The filesystem that the function belongs to; "any" for all."""
    function: str
    arguments: tuple[str, ...]
    """Types of those arguments that the body is given, in the kernel's order; others may stand between them."""
    entry: bool
    instead: str = ""
    """A function in whose place this one is hooked where the kernel lacks it."""
    optional: bool = False
    """A kernel without this function has nothing that it would do, or another one that is hooked."""

    def positions(self, there: tuple[str, ...]) -> tuple[int, ...] | None:
        """Where among a function's arguments those are that the body is given; None if not all are there."""
        found: list[int] = []
        for wanted in self.arguments:
            start = found[-1] + 1 if found else 0
            at = next((i for i in range(start, len(there)) if there[i] == wanted), None)
            if at is None:
                return None
            found.append(at)
        return tuple(found)

    def superfluous(self, btf: Types) -> bool:
        """Whether nothing is lost without this hook on the kernel that `btf` describes."""
        if self.instead:
            return btf.function(self.instead) is not None
        return self.optional and btf.function(self.function) is None

    def objection(self, btf: Types) -> str | None:
        """Why this hook cannot be used on the kernel that `btf` describes; None if it can."""
        there = btf.function(self.function)
        if there is None:
            return "this kernel has no such function"
        if self.positions(there.arguments) is None:
            return f"this kernel passes ({', '.join(there.arguments)}), expected was ({', '.join(self.arguments)})"
        if len(there.arguments) > REGISTERS:
            return f"it takes more than {REGISTERS} arguments"
        return None


REGISTERS = 6
"""Arguments that are passed in registers; of a function with more, trampolines and probes see the first ones only."""


def accesses(source: str) -> list[Access]:
    """Every use of a member in `source`, each once, in order of appearance."""
    text = _MACRO.sub("", _COMMENT.sub("", source))
    # the condition of a directive is text as well: HAS_FIELD stands only there
    return list(dict.fromkeys(Access(*match) for match in _ACCESS.findall(text)))


def hooks(source: str) -> list[Hook]:
    """Every HOOK of `source`. ValueError for one that is not on one line, or twice there."""
    text = _MACRO.sub("", _COMMENT.sub("", source))
    interrupts = set(_INTERRUPTS.findall(text))
    found = [
        Hook(family, tracepoint, tuple(word.strip() for word in rest.split(",")[1:]), tracepoint in interrupts)
        for family, tracepoint, rest in _HOOK.findall(text)
    ]
    if len(found) != len(re.findall(r"\bHOOK\(", text)) or len(set(found)) != len(found):
        raise ValueError("a HOOK is not on a line of its own, or twice there")
    return found


def function_hooks(source: str) -> list[FunctionHook]:
    """Every ENTRY and AFTER of `source`. ValueError for one that is not on one line, or twice there."""
    text = _MACRO.sub("", _COMMENT.sub("", source))
    instead = {other: one for one, other in _INSTEAD.findall(text)}
    optional = set(_OPTIONAL.findall(text))
    found = [
        FunctionHook(
            family,
            fstype,
            function,
            tuple(word.strip() for word in rest.split(",")[1:]),
            verb == "ENTRY",
            instead.get(function, ""),
            function in optional,
        )
        for verb, family, fstype, function, rest in _FUNCTION.findall(text)
    ]
    written = len(re.findall(r"\b(?:ENTRY|AFTER)\(", text))
    if len(found) != written or len({(hook.function, hook.entry) for hook in found}) != written:
        raise ValueError("an ENTRY or AFTER is not on a line of its own, or twice there")
    return found


def _enumerators(source: str) -> list[tuple[str, str]]:
    """Name and what follows it ("," before a fallback, or ")") of every ENUMERATOR, also in macros."""
    text = _COMMENT.sub("", source).replace("define ENUMERATOR(", "")
    return list(dict.fromkeys(_ENUMERATOR.findall(text)))


def missing(source: str, btf: Types) -> list[str]:
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


def constants(sources: Iterable[str], btf: Types) -> str:
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

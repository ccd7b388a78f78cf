"""A control group's path as one short word: which container, or which unit of systemd.

Takes a path below the cgroup2 mount; gives what fits into a column. Pure. Knows how Docker, Podman, containerd, CRI-O,
LXC and systemd name their groups; the names of others come out as they are, shortened.
"""

from __future__ import annotations

import re
from typing import Final

WIDTH: Final = 24
"""Characters of the longest label."""
ROOT: Final = "-"
UNKNOWN: Final = "?"

# A container's id is 64 hexadecimal digits, of which everybody shows twelve. Runtimes without systemd use it alone.
_CONTAINER: Final = re.compile(r"(?:.*?:)?(?:([a-z][a-z0-9-]*)[-:])?([0-9a-f]{12})[0-9a-f]{52}(?:\.scope)?")
_RUNTIMES: Final = {"libpod": "podman", "cri-containerd": "containerd", "crio": "cri-o"}
_PARENTS: Final = {"docker": "docker", "libpod_parent": "podman", "kubepods": "cri", "kubepods.slice": "cri"}
_LXC: Final = re.compile(r"lxc\.payload\.(.+)")
_ESCAPE: Final = re.compile(r"\\x([2-7][0-9a-e])")  # of what can be shown
_PAYLOAD: Final = frozenset({"container", "init.scope", "payload", "supervisor"})
"""What containers call the groups inside them that tell nothing."""


def label(path: str | None) -> str:
    """`docker-0123456789ab`, `nginx`, `lxc-web`; `ROOT` for the root, `UNKNOWN` for None.

    What a container has inside follows it: `docker-0123456789ab/nginx`.
    """
    if path is None:
        return UNKNOWN
    names = [name for name in path.split("/") if name]
    if not names:
        return ROOT
    for at in range(len(names) - 1, -1, -1):
        container = _container(names, at)
        if container is not None:
            inside = names[-1]
            if at == len(names) - 1 or inside in _PAYLOAD:
                return _fit(container)
            return _fit(f"{container}/{_unit(inside)}")
    return _fit(_unit(names[-1]))


def _container(names: list[str], at: int) -> str | None:
    name = names[at]
    found = _CONTAINER.fullmatch(name)
    if found is not None:
        runtime = found[1]
        if runtime is None:
            runtime = next((_PARENTS[parent] for parent in names[:at] if parent in _PARENTS), "")
        runtime = _RUNTIMES.get(runtime, runtime)
        return f"{runtime}-{found[2]}" if runtime else found[2]
    payload = _LXC.fullmatch(name)
    if payload is not None:
        return f"lxc-{payload[1]}"
    if at > 0 and names[at - 1] == "lxc":
        return f"lxc-{name}"
    return None


def _unit(name: str) -> str:
    """Without the ending that says nothing, and with systemd's escapes undone."""
    plain = name.removesuffix(".service").removesuffix(".scope") or name
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), plain)


def _fit(text: str) -> str:
    if len(text) <= WIDTH:
        return text
    head = (WIDTH - 1) * 2 // 3
    return f"{text[:head]}…{text[head + 1 - WIDTH :]}"

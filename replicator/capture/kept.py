"""What a set of kept programs is signed with, and whether it may be taken over.

Pure. A set is taken over only if all of `Build` is what this process would make itself; the rest of a signature says
what is in the set. A change of how kept memory is laid out or meant (capture/notebook.py, maps read in shared memory)
takes another `LAYOUT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple, Self

import orjson
import xxhash

from replicator.capture.object import Object

LAYOUT: Final = 1


@dataclass(frozen=True, slots=True)
class Build:
    """What must be the same."""

    programs: str
    """All that decides what is loaded, and how: a digest."""
    sensor: str
    filesystem: str
    """Its type and device, and which mount of it."""
    state: str
    """The state directory."""
    boot: str

    def difference(self, other: Build) -> str | None:
        """In what way another is not the same, in words; None if it is."""
        words = {
            "boot": "they are of another boot",
            "state": "they are of another state directory",
            "filesystem": "they are of another filesystem, or it was unmounted since",
            "sensor": "they are of another sensor",
            "programs": "they are of another build",
        }
        return next((said for name, said in words.items() if getattr(self, name) != getattr(other, name)), None)


class KeptProgram(NamedTuple):
    """One program, and its link of the same name."""

    name: str
    place: int
    """Of its hook in the assembly."""
    mechanism: str
    spare: int


@dataclass(frozen=True, slots=True)
class Signature:
    """What is in a set."""

    build: Build
    programs: tuple[KeptProgram, ...]
    refused: tuple[tuple[int, str, bool], ...]
    """Hooks that are not attached, by place; why, and whether the kernel did not let it happen."""
    events: tuple[str, ...]
    """Definitions of kernel probes in tracefs."""

    def dump(self) -> bytes:
        """As bytes."""
        return orjson.dumps(
            {
                "build": asdict(self.build),
                "programs": [list(program) for program in self.programs],
                "refused": self.refused,
                "events": self.events,
            }
        )

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Read `dump()` back. ValueError for anything else, as another version may have written it."""
        try:
            read: dict[str, Any] = orjson.loads(data)
            return cls(
                Build(**read["build"]),
                tuple(KeptProgram(*program) for program in read["programs"]),
                tuple((place, reason, refused) for place, reason, refused in read["refused"]),
                tuple(read["events"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a signature of this version ({error})") from error


def digest(text: str, made: Object, decided: Mapping[str, object]) -> str:
    """Of the sources as they were compiled, what came of it, and what else decides what is loaded (sizes, choices)."""
    head = orjson.dumps([LAYOUT, text, sorted((name, repr(value)) for name, value in decided.items())])
    return xxhash.xxh3_128_hexdigest(head + made.dump())

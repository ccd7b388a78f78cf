"""A BPF map as Python sees it: bytes in, bytes out.

Takes a map's descriptor and what it was made with; gives values. Which numbers those bytes are is the caller's
knowledge: the struct in ebpf/ that the map was declared with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from replicator.capture import bpf
from replicator.capture.object import MapSpec


def possible_processors() -> int:
    """How many processors the kernel keeps room for, also for such as are not there."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().replace("-", ",").split(",")[-1]
    return int(last) + 1


class Map:
    """One map; `close` gives the descriptor back."""

    def __init__(self, spec: MapSpec, descriptor: int | None = None) -> None:
        """Make it, or take over one that was made so, which is its own then. OSError if the kernel refuses."""
        self.spec = spec
        if descriptor is None:
            descriptor = bpf.create_map(
                spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags, f"rsyncfs_{spec.name}"
            )
        self.descriptor = descriptor

    def get(self, key: bytes) -> bytes | None:
        """A key's value, of a map that is not by processor; None if it has none."""
        return bpf.lookup(self.descriptor, key, self.spec.value_size)

    def set(self, key: bytes, value: bytes) -> None:
        """Set a key's value."""
        bpf.update(self.descriptor, key, value)

    def remove(self, key: bytes) -> bool:
        """Remove a key; false if it was not there."""
        return bpf.delete(self.descriptor, key)

    def keys(self) -> Iterator[bytes]:
        """All keys, of a hash. One that is removed meanwhile makes the kernel begin anew: some may come twice."""
        key = bpf.next_key(self.descriptor, None, self.spec.key_size)
        while key is not None:
            yield key
            key = bpf.next_key(self.descriptor, key, self.spec.key_size)

    def close(self) -> None:
        """Give it back. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

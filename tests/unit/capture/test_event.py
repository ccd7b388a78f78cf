"""The record in C and the record in Python are one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from replicator.capture.event import EVENT, EventFlag, EventKind
from replicator.resources import ebpf_directory

PROGRAM = """
#include <stddef.h>
#include <stdio.h>
typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned int __u32; typedef unsigned long long __u64;
#include "event.h"
int main(void) {
    struct rsyncfs_event e;
    printf("size %zu\\n", sizeof(e));
    @
    return 0;
}
"""


def test_offsets_sizes_and_values_agree(tmp_path: Path) -> None:
    header = (ebpf_directory() / "event.h").read_text()
    enumerators = re.findall(r"^\s+(RSYNCFS_[A-Z]+) = ", header, re.MULTILINE)
    flags = re.findall(r"^#define (RSYNCFS_F_[A-Z]+) ", header, re.MULTILINE)
    assert enumerators
    assert flags
    lines = [
        f'printf("{name} %zu %zu\\n", offsetof(struct rsyncfs_event, {name}), sizeof(e.{name}));'
        for name in EVENT.names or ()
    ]
    lines += [f'printf("{name} %d\\n", (int){name});' for name in enumerators + flags]
    source = tmp_path / "layout.c"
    source.write_text(PROGRAM.replace("@", "\n    ".join(lines)))
    binary = tmp_path / "layout"
    subprocess.run(["cc", "-Wall", "-Werror", f"-I{ebpf_directory()}", "-o", binary, source], check=True)
    printed = subprocess.run([binary], check=True, capture_output=True, text=True).stdout.split("\n")
    said = {words[0]: tuple(map(int, words[1:])) for words in map(str.split, printed) if words}

    assert EVENT.fields is not None
    wanted: dict[str, tuple[int, ...]] = {
        name: (offset, dtype.itemsize) for name, (dtype, offset, *_) in EVENT.fields.items()
    }
    wanted["size"] = (EVENT.itemsize,)
    wanted |= {f"RSYNCFS_{kind.name}": (int(kind),) for kind in EventKind}
    wanted |= {f"RSYNCFS_F_{flag.name}": (int(flag),) for flag in EventFlag}
    assert said == wanted
    members = re.search(r"struct rsyncfs_event \{(.*?)\n\};", header, re.DOTALL)
    assert members is not None
    assert re.findall(r"^\s+__u\d+ (\w+);", members[1], re.MULTILINE) == list(EVENT.names or ())

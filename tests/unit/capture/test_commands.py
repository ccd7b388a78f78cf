"""The names of processes, as the kernel side keeps them."""

from __future__ import annotations

import struct

from replicator.capture.commands import SIZE, Command


def test_names_end_where_the_kernel_s_do() -> None:
    value = struct.pack("=16s16sQ", b"dd\0rubbish", b"fifteen-letters", 7)
    assert len(value) == SIZE
    assert Command.parse(value) == Command(b"dd", b"fifteen-letters", 7)


def test_a_process_that_made_no_record_before_has_one_name() -> None:
    assert Command.parse(struct.pack("=16s16sQ", b"cp", b"", 7)) == Command(b"cp", b"", 7)

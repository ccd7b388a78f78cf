"""The counters' places are those that ebpf/maps.h gives them."""

from __future__ import annotations

import re

from replicator.capture import counts, source
from replicator.resources import ebpf_directory


def test_each_counter_is_read_where_it_is_written() -> None:
    text = (ebpf_directory() / "maps.h").read_text()
    (body,) = re.findall(r"enum rsyncfs_count \{(.*?)\};", text, re.DOTALL)
    places = {name: int(place) for name, place in re.findall(r"RSYNCFS_(\w+) = (\d+),", body)}
    assert places.pop("COUNTS") == counts._COLUMNS
    assert places == {name: getattr(counts, name) for name in places}
    assert len(places) == 4


def test_each_hook_has_a_place_for_what_its_spares_told() -> None:
    (places,) = re.findall(r"#define RSYNCFS_HOOKS (\d+)", (ebpf_directory() / "notes.h").read_text())
    assert int(places) == source.MOST_HOOKS

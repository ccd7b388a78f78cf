"""Which families of hooks are chosen for a kernel, by what its types describe."""

from __future__ import annotations

import pytest

from replicator.capture.btf import Btf
from replicator.capture.probe import limits
from replicator.capture.tracepoint import FAMILIES, MODIFY, NEWER, STAND_INS, attributes_by_modify, families_on
from tests.unit.capture.made_btf import kernel


def describing(*tracepoints: str) -> Btf:
    maker = kernel()
    for name in tracepoints:
        maker.tracepoint(name)
    return Btf(maker.blob())


OLD = describing()
NEW = describing(*NEWER)


@pytest.mark.parametrize("fstype", FAMILIES)
def test_a_new_kernel_needs_no_stand_ins(fstype: str) -> None:
    assert families_on(fstype, NEW) == FAMILIES[fstype]
    assert attributes_by_modify(fstype, NEW) == []


def test_on_an_old_kernel_others_take_the_place_of_what_it_lacks() -> None:
    assert set(families_on("ext4", OLD)) == {"net", "ext4", "ext4_inode", "freed"}
    assert set(families_on("xfs", OLD)) == {"net", "xfs", "xfs_inode", "freed"}
    assert set(families_on("btrfs", OLD)) == {"net", "btrfs", "freed"}
    assert families_on("tmpfs", OLD) == FAMILIES["tmpfs"]


@pytest.mark.parametrize("fstype", FAMILIES)
def test_fanotify_is_asked_for_writes_only_where_no_hook_tells_of_attributes(fstype: str) -> None:
    asked = [item.mechanism for item in attributes_by_modify(fstype, OLD)]
    assert asked == ([] if fstype in ("ext4", "xfs") else [MODIFY])


def test_every_tracepoint_that_came_late_says_who_needs_it() -> None:
    assert NEWER.keys() == STAND_INS.keys()


def test_what_an_old_kernel_hides_on_tmpfs_is_said() -> None:
    told = limits("tmpfs", attributes_by_modify("tmpfs", OLD))
    assert len(told) == 2
    assert "6.13" in told[1]
    assert limits("ext4", attributes_by_modify("ext4", OLD)) == ()
    assert any("DAX" in limit for limit in limits("ext4", attributes_by_modify("ext4", OLD), dax=True))

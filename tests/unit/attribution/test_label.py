"""Control groups are called what people call them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.attribution.label import WIDTH, label

ID = "0123456789ab" + "c" * 52


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (None, "?"),
        ("/", "-"),
        (f"/system.slice/docker-{ID}.scope", "docker-0123456789ab"),
        (f"/docker/{ID}", "docker-0123456789ab"),
        (f"/system.slice/docker-{ID}.scope/init.scope", "docker-0123456789ab"),
        (f"/docker/{ID}/web", "docker-0123456789ab/web"),
        (f"/machine.slice/libpod-{ID}.scope/container", "podman-0123456789ab"),
        (f"/libpod_parent/libpod-{ID}", "podman-0123456789ab"),
        (f"/kubepods.slice/kubepods-pod7.slice/cri-containerd-{ID}.scope", "containerd-0123456789ab"),
        (f"/kubepods.slice/kubepods-pod7.slice:cri-containerd:{ID}", "containerd-0123456789ab"),
        (f"/kubepods.slice/kubepods-burstable.slice/crio-{ID}.scope", "cri-o-0123456789ab"),
        (f"/kubepods/burstable/pod7/{ID}", "cri-0123456789ab"),
        (f"/elsewhere/{ID}", "0123456789ab"),
        ("/lxc.payload.web/system.slice/nginx.service", "lxc-web/nginx"),
        ("/lxc.payload.web", "lxc-web"),
        ("/lxc/web", "lxc-web"),
        ("/system.slice/nginx.service", "nginx"),
        ("/system.slice/system-postgresql.slice/postgresql@15-main.service", "postgresql@15-main"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3"),
        ("/init.scope", "init"),
        ("/.scope", ".scope"),
        ("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope", "machine-qemu-1-vm"),
        ("/user.slice", "user.slice"),
        ("/a-name-that-is-too-long-to-be-shown-in-a-column", "a-name-that-is-…a-column"),
    ],
)
def test_a_path_becomes_a_word(path: str | None, shown: str) -> None:
    assert label(path) == shown


@given(st.text())
def test_every_label_fits_into_its_column(path: str) -> None:
    assert 1 <= len(label(path)) <= WIDTH

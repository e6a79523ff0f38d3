"""Kinds of volumes, by where a kubelet keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgeone_shim.contract.model import VOLUME_KINDS
from forgeone_shim.contract.volumes import HOST_PATH, KUBELET, kind

UID = "0f3d4c7e-1111-2222-3333-444455556666"
HOME = f"/var/lib/kubelet/pods/{UID}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f"{HOME}/volumes/kubernetes.io~empty-dir/cache", "empty-dir"),
        (f"{HOME}/volumes/kubernetes.io~configmap/conf", "config-map"),
        (f"{HOME}/volumes/kubernetes.io~secret/key", "secret"),
        (f"{HOME}/volumes/kubernetes.io~projected/kube-api-access-x", "projected"),
        (f"{HOME}/volumes/kubernetes.io~downward-api/info", "downward-api"),
        (f"{HOME}/volumes/kubernetes.io~csi/pvc-1/mount", "csi"),
        (f"{HOME}/volumes/kubernetes.io~nfs/share", "persistent"),
        (f"{HOME}/volumeDevices/kubernetes.io~csi/pvc-1", "csi"),
        (f"{HOME}/etc-hosts", KUBELET),
        (f"{HOME}/containers/web/5f0c", KUBELET),
        (f"{HOME}/volumes", HOST_PATH),
        (f"{HOME}/volumes/kubernetes.io~empty-dir", HOST_PATH),
        (f"{HOME}/plugins/x", HOST_PATH),
        (HOME, HOST_PATH),
        (f"{HOME}0/volumes/kubernetes.io~empty-dir/cache", HOST_PATH),
        ("/var/lib/kubelet/pods/other/volumes/kubernetes.io~empty-dir/cache", HOST_PATH),
        (f"/srv{HOME}/volumes/kubernetes.io~empty-dir/cache", HOST_PATH),
        ("/etc", HOST_PATH),
        ("/", HOST_PATH),
    ],
)
def test_a_kind_is_told_from_the_directory(source: str, expected: str) -> None:
    assert kind(source, UID) == expected
    assert expected in {*VOLUME_KINDS, KUBELET}


@pytest.mark.parametrize("uid", ["", ".", "..", "../x", "a/b"])
def test_a_pod_without_a_uid_of_its_own_has_paths_of_the_host(uid: str) -> None:
    assert kind(f"/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/x", uid) == HOST_PATH


def test_a_sub_path_is_of_its_volume(tmp_path: Path) -> None:
    home = tmp_path / "pods" / UID
    (home / "volumes" / "kubernetes.io~empty-dir" / "cache").mkdir(parents=True)
    root = str(tmp_path)
    assert kind(f"{home}/volume-subpaths/cache/web/0", UID, root) == "empty-dir"
    (home / "volumes" / "kubernetes.io~nfs" / "share").mkdir(parents=True)
    assert kind(f"{home}/volume-subpaths/share/web/0", UID, root) == "persistent"
    # The kubelet has no directory for a path of the host's, and binds its sub paths like others.
    assert kind(f"{home}/volume-subpaths/host/web/0", UID, root) == HOST_PATH
    assert kind(f"{home}/volume-subpaths", UID, root) == HOST_PATH
    # A name is no pattern.
    assert kind(f"{home}/volume-subpaths/c*/web/0", UID, root) == HOST_PATH
    assert kind(f"{home}/volume-subpaths//web/0", UID, root) == HOST_PATH

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


def _mounted(home: Path, *lines: tuple[str, str, str]) -> str:
    """The host's file system (8:1, all of it at /), and device, root and place (below ``home``) of others."""
    more = [f"{number} 1 {dev} {of} {home}/{at} rw - ext4 x rw" for number, (dev, of, at) in enumerate(lines, 100)]
    return "\n".join(["1 0 8:1 / / rw - ext4 /dev/sda1 rw", *more])


def test_a_sub_path_is_of_its_volume(tmp_path: Path) -> None:
    home, root = tmp_path / "pods" / UID, str(tmp_path)
    for volume in ("kubernetes.io~empty-dir/cache", "kubernetes.io~nfs/share", "kubernetes.io~csi/pvc-1"):
        (home / "volumes" / volume).mkdir(parents=True)
    mounted = _mounted(
        home,
        ("8:1", f"{home}/volumes/kubernetes.io~empty-dir/cache/a\\040b", "volume-subpaths/cache/web/0"),
        ("0:50", "/", "volumes/kubernetes.io~nfs/share"),
        ("0:50", "/a", "volume-subpaths/share/web/0"),
        ("8:9", "/", "volumes/kubernetes.io~csi/pvc-1/mount"),
        ("8:9", "/a//deleted", "volume-subpaths/pvc-1/web/0"),
        ("8:1", "/srv", "volume-subpaths/host/web/0"),
    )

    def of(path: str) -> str:
        return kind(f"{home}/{path}", UID, root, lambda: mounted)

    assert of("volume-subpaths/cache/web/0") == "empty-dir"
    assert of("volume-subpaths/share/web/0") == "persistent"
    assert of("volume-subpaths/pvc-1/web/0") == "csi"
    # The kubelet has no directory for a path of the host's, and binds its sub paths like others.
    assert of("volume-subpaths/host/web/0") == HOST_PATH
    assert of("volume-subpaths/cache/web/1") == HOST_PATH
    assert of("volume-subpaths/cache") == of("volume-subpaths") == HOST_PATH
    # A name is no pattern.
    assert of("volume-subpaths/c*/web/0") == of("volume-subpaths//web/0") == HOST_PATH


def test_a_path_of_the_host_that_is_called_as_a_persistent_volume_is_none(tmp_path: Path) -> None:
    home, root = tmp_path / "pods" / UID, str(tmp_path)
    (home / "volumes" / "kubernetes.io~csi" / "pvc-1").mkdir(parents=True)
    (home / "volumes" / "kubernetes.io~local-volume" / "pvc-2").mkdir(parents=True)
    mounted = _mounted(
        home,
        ("8:9", "/", "volumes/kubernetes.io~csi/pvc-1/mount"),
        ("8:1", "/mnt/disk", "volumes/kubernetes.io~local-volume/pvc-2"),
        # In the file system of the host's, not below the volume; then bound over what was.
        ("8:1", "/etc", "volume-subpaths/pvc-1/web/0"),
        ("8:1", "/mnt/disk/a", "volume-subpaths/pvc-2/web/0"),
        ("8:1", "/mnt/disk2", "volume-subpaths/pvc-2/web/0"),
    )
    for volume in ("pvc-1", "pvc-2"):
        assert kind(f"{home}/volume-subpaths/{volume}/web/0", UID, root, lambda: mounted) == HOST_PATH


@pytest.mark.parametrize("path", ["volumes/kubernetes.io~empty-dir/cache", "volume-subpaths/cache/web/0"])
def test_what_is_mounted_here_can_be_read(tmp_path: Path, path: str) -> None:
    home = tmp_path / "pods" / UID
    (home / "volumes" / "kubernetes.io~empty-dir" / "cache").mkdir(parents=True)
    expected = "empty-dir" if path.startswith("volumes") else HOST_PATH
    assert kind(f"{home}/{path}", UID, str(tmp_path)) == expected

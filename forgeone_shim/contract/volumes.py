"""What kind of volume a mount is of, told from where a kubelet keeps it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

KUBELET: Final = "kubelet"
"""The kubelet's own files for a pod (hosts, termination log): no volume, and no contract speaks of them."""
HOST_PATH: Final = "host-path"
ROOT: Final = "/var/lib/kubelet"

# Directories below pods/UID/volumes, by the name that a volume's plugin has (pkg/util/filesystem, k8s.io/kubernetes).
_PLUGINS: Final = {
    "kubernetes.io~configmap": "config-map",
    "kubernetes.io~csi": "csi",
    "kubernetes.io~downward-api": "downward-api",
    "kubernetes.io~empty-dir": "empty-dir",
    "kubernetes.io~projected": "projected",
    "kubernetes.io~secret": "secret",
}
_OTHERS: Final = "persistent"


def kind(source: str, uid: str, root: str = ROOT) -> str:
    """One of ``model.VOLUME_KINDS``, or :data:`KUBELET`, of a path of the host without symlinks in it.

    What is not in the directory of the pod of that ``uid`` below the kubelet's ``root`` is the host's own. None but the
    kubelet can write to these directories.
    """
    home = f"{root}/pods/{uid}/"
    if not uid or "/" in uid or uid in {".", ".."} or not source.startswith(home):
        return HOST_PATH
    place, _, rest = source.removeprefix(home).partition("/")
    if place in {"etc-hosts", "containers"}:
        return KUBELET
    plugin, _, name = rest.partition("/")
    if place == "volume-subpaths":
        # VOLUME/CONTAINER/INDEX; the volume itself still lies below its plugin, but for a path of the host's.
        plugin = _plugin(f"{home}volumes", plugin)
        return _PLUGINS.get(plugin, _OTHERS) if plugin else HOST_PATH
    if place not in {"volumes", "volumeDevices"}:
        return HOST_PATH
    return _PLUGINS.get(plugin, _OTHERS) if name else HOST_PATH


def _plugin(directory: str, volume: str) -> str:
    with suppress(OSError):
        for entry in sorted(os.listdir(directory)):  # noqa: PTH208
            if volume and os.path.lexists(f"{directory}/{entry}/{volume}"):
                return entry
    return ""

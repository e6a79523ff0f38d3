"""What kind of volume a mount is of, told from where a kubelet keeps it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forgeone_shim.contract.merge import below

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
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class _Mount:
    """What is mounted at ``point``: the part of a device's file system that is below ``root`` in it."""

    point: str
    device: str
    root: str


def table() -> str:
    """What is mounted where (proc_pid_mountinfo(5))."""
    return Path("/proc/self/mountinfo").read_text(errors="surrogateescape")


def kind(source: str, uid: str, root: str = ROOT, mounted: Callable[[], str] = table) -> str:
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
        # VOLUME/CONTAINER/INDEX, where a part of the volume is bound; the volume itself lies below its plugin.
        plugin = _plugin(f"{home}volumes", plugin, source, mounted) if plugin and name else ""
        return _PLUGINS.get(plugin, _OTHERS) if plugin else HOST_PATH
    if place not in {"volumes", "volumeDevices"}:
        return HOST_PATH
    return _PLUGINS.get(plugin, _OTHERS) if name else HOST_PATH


def _plugin(directory: str, volume: str, bound: str, mounted: Callable[[], str]) -> str:
    """Whose volume of that name ``bound`` is a part of; empty: of none.

    The name alone says nothing. A path of the host's is called as the pod's author likes, and that may be as a
    persistent volume is called, which another of the pod's volumes is.
    """
    with suppress(OSError):
        for entry in sorted(os.listdir(directory)):  # noqa: PTH208
            path = f"{directory}/{entry}/{volume}"
            if os.path.lexists(path) and _is_part(bound, path, list(_mounts(mounted()))):
                return entry
    return ""


def _is_part(bound: str, volume: str, mounts: list[_Mount]) -> bool:
    """Whether what is bound there is in a volume's directory, or in what is mounted there."""
    part = next((one for one in reversed(mounts) if one.point == bound), None)
    if part is None:
        return False
    wholes = [one for one in mounts if below(one.point, volume)]
    around = [one for one in mounts if below(volume, one.point)]
    if around:
        # The last of those that are nearest: it hides the others.
        nearest = max(reversed(around), key=lambda one: len(one.point))
        inside = os.path.normpath(os.path.join(nearest.root, os.path.relpath(volume, nearest.point)))  # noqa: PTH118
        wholes.append(_Mount(volume, nearest.device, inside))
    return any(one.device == part.device and below(part.root, one.root) for one in wholes)


def _mounts(text: str) -> Iterator[_Mount]:
    for line in text.splitlines():
        _, _, device, root, point, *_ = line.split(" ")
        yield _Mount(_decoded(point), device, _decoded(root))


def _decoded(path: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), path)

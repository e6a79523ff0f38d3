"""Nodes on scratch trees, bundles of a few files, and a systemd and runtimes that note what is asked of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, Unavailable
from forgeone_shim.node import layout
from forgeone_shim.node.layout import Layout
from forgeone_shim.node.steps import Do
from forgeone_shim.node.work import Pod

OLD_SOCKET = "/run/containerd/containerd.sock"
KUBEADM_UNIT = """\
# Note: This dropin only works with kubeadm and kubelet v1.11+
[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
"""
KUBEADM_FLAGS = f'KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=unix://{OLD_SOCKET} --node-ip=10.0.0.7"\n'
CONFIG = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n# kept\nhealthzPort: 0\n"
KUBEADM: Mapping[str, str] = {
    "/usr/lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet\n",
    "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf": KUBEADM_UNIT,
    "/var/lib/kubelet/kubeadm-flags.env": KUBEADM_FLAGS,
    "/var/lib/kubelet/config.yaml": CONFIG,
}
SERVICE = "[Service]\nExecStart={prefix}/bin/forgeoned\n[Install]\nWantedBy=multi-user.target\n"


def write(root: Path, content: Mapping[str, str]) -> None:
    for path, text in content.items():
        place = root / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def snapshot(root: Path) -> dict[str, object]:
    """Everything below, but what the installer remembers."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = "/" + str(path.relative_to(root))
        if name.startswith(layout.STATE) or (path.is_dir() and not path.is_symlink()):
            continue
        found[name] = str(path.readlink()) if path.is_symlink() else (path.read_bytes(), path.stat().st_mode)
    return found


def bundle(directory: Path, version: str, *, broken: bool = False) -> Path:
    """A bundle of three files and a link."""
    prefix = layout.version_directory(version)
    content = {
        "bin/forge": f"forge {version}",
        "bin/forgeoned": f"forgeoned {version}",
        "share/systemd/forgeoned.service": SERVICE.format(prefix=prefix),
    }
    files = {}
    for name, text in content.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        mode = 0o755 if name.startswith("bin/") else 0o644
        path.chmod(mode)
        digest = hashlib.sha256(text.encode()).hexdigest()
        files[name] = {"mode": f"{mode:04o}", "size": len(text), "sha256": digest}
    (directory / "bin/f").symlink_to("forge")
    manifest = {"manifest": 1, "name": "forgeone", "version": version, "arch": os.uname().machine, "prefix": prefix}
    manifest |= {"unit": "share/systemd/forgeoned.service", "files": files, "links": {"bin/f": "forge"}}
    (directory / "manifest.json").write_text(json.dumps(manifest | {"relocated": [], "packages": []}))
    if broken:
        (directory / "bin/forgeoned").write_text("forgeoned 9.9.9")
    return directory


@dataclass
class Services:
    """A systemd. ``fails`` are jobs that do, ``dies`` what raises instead of doing."""

    running: set[str] = field(default_factory=lambda: {"kubelet.service"})
    asked: list[str] = field(default_factory=list)
    fails: set[str] = field(default_factory=set)
    on: dict[str, object] = field(default_factory=dict)

    def reload(self, deadline: Deadline) -> None:
        self._ask("reload")

    def job(self, do: Do, unit: str, deadline: Deadline) -> None:
        self._ask(f"{do} {unit}")
        self._become(do, unit)

    def _become(self, do: Do, unit: str) -> None:
        (self.running.discard if do is Do.STOP else self.running.add)(unit)

    def queue(self, do: Do, unit: str, deadline: Deadline) -> None:
        self._ask(f"queue {do} {unit}")
        self._become(do, unit)

    def active(self, unit: str, deadline: Deadline) -> bool:
        return unit in self.running

    def main_pid(self, unit: str, deadline: Deadline) -> int:
        return 7

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what in self.on:
            self.on.pop(what)()  # type: ignore[operator]
        if what in self.fails:
            raise FailedPrecondition(f"systemd: {what} failed")


@dataclass
class Runtimes:
    """The sockets of a node, by their ends (``containerd.sock``); ``silent`` ones do not answer."""

    sandboxes: dict[str, list[Pod]] = field(default_factory=dict)
    unready: str = ""
    removed: list[tuple[str, str, int]] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)

    def ready(self, socket: Path, version: str, deadline: Deadline) -> None:
        if self.unready:
            raise FailedPrecondition(f"forgeoned is not ready: {self.unready}")

    def pods(self, socket: Path, deadline: Deadline) -> tuple[Pod, ...]:
        if socket.name in self.silent:
            raise Unavailable(f"no answer from {socket}")
        return tuple(self.sandboxes.get(socket.name, ()))

    def remove(self, socket: Path, pod: str, grace: int, deadline: Deadline) -> None:
        self.removed.append((socket.name, pod, grace))
        for pods in self.sandboxes.values():
            pods[:] = [one for one in pods if one.id != pod]


def pod(name: str) -> Pod:
    return Pod(id=name, uid=f"uid-{name}", namespace="default", name=name, running=True)


def node(root: Path, content: Mapping[str, str] = KUBEADM) -> Layout:
    root.mkdir(exist_ok=True)
    write(root, {**content, OLD_SOCKET: ""})
    return Layout(root)

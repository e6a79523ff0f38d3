"""What a cluster is to be like, and the files that say so to kind, kubeadm, Docker and ForgeOne: pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

import yaml

from forgeone_shim.errors import InvalidInput

Mode = Literal["beside", "replace", "installer"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
SOCKET: Final = "/run/forgeone/forgeone.sock"
CONTAINERD: Final = "/run/containerd/containerd.sock"
REGISTRIES: Final = "/etc/containerd/certs.d"
"""Where nodes read how to reach registries: containerd's format, which ForgeOne reads too."""
BOOT_SET: Final = "/opt/forgeone-boot"
REGISTRY_PORT: Final = 5000
"""What the registry listens on inside its container."""
READY: Final = "forgeone.dev/ready"
_ENGINES: Final = ("native", "wasm")


@dataclass(frozen=True, slots=True)
class Settings:
    """A cluster.

    ``beside``
        Nodes have ForgeOne in front of containerd, which goes on running the pods without a RuntimeClass of ForgeOne's.
    ``replace``
        Nodes have ForgeOne alone.
    ``installer``
        Nodes are kind's own; the chart's installer puts ForgeOne on them.
    """

    name: str = "forgeone"
    mode: Mode = "beside"
    base: str = "kindest/node:v1.34.0"
    workers: int = 2
    microvm: bool = False
    registry_port: int = 5001
    registry_image: str = "registry:2"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InvalidInput("mode", f"{self.mode!r} is none of {', '.join(MODES)}")
        if self.microvm and self.mode == "installer":
            raise InvalidInput("microvm", "kind's own nodes have no QEMU; take another mode")
        if not 0 <= self.workers <= 16:
            raise InvalidInput("workers", f"{self.workers} is not between 0 and 16")
        if not 1 <= self.registry_port <= 65535:
            raise InvalidInput("registry-port", f"{self.registry_port} is no port")
        if not self.name or not self.name.replace("-", "").isalnum() or self.name != self.name.lower():
            raise InvalidInput("name", f"{self.name!r}: lower-case letters, digits and dashes")

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names that kind gives to the containers of the nodes."""
        workers = (f"{self.name}-worker{'' if number == 1 else number}" for number in range(1, self.workers + 1))
        return (f"{self.name}-control-plane", *workers)

    @property
    def registry(self) -> str:
        """The registry's container."""
        return f"{self.name}-registry"

    @property
    def registry_inside(self) -> str:
        """The registry as nodes name it."""
        return f"{self.registry}:{REGISTRY_PORT}"

    @property
    def registry_outside(self) -> str:
        """The registry as this host names it."""
        return f"127.0.0.1:{self.registry_port}"

    def text(self) -> str:
        """As :func:`parse` reads it."""
        return json.dumps(asdict(self), indent=2) + "\n"


def parse(text: str) -> Settings:
    """What :meth:`Settings.text` wrote.

    :raises InvalidInput: it is something else.
    """
    try:
        known = json.loads(text)
        if not isinstance(known, dict) or set(known) != {field.name for field in fields(Settings)}:
            raise InvalidInput("settings", "not the settings of a cluster of this version of hack.kind")
        return Settings(**known)
    except (ValueError, TypeError) as error:
        raise InvalidInput("settings", str(error)) from error


def cluster(settings: Settings, version: str, directory: Path) -> str:
    """kind's configuration (kind.x-k8s.io/v1alpha4) of the cluster, whose files are in ``directory``.

    The patches are of kubeadm's InitConfiguration and JoinConfiguration, by fields that are the same in v1beta3 and
    v1beta4; kind merges them into whichever it writes.
    """
    mounts: list[dict[str, Any]] = [
        {"hostPath": str(directory / "certs.d"), "containerPath": REGISTRIES, "readOnly": True}
    ]
    if settings.microvm:
        mounts.append({"hostPath": "/dev/kvm", "containerPath": "/dev/kvm"})
    node: dict[str, Any] = {"extraMounts": mounts}
    if settings.mode != "installer":
        node["labels"] = labels(settings, version)
    roles = ["control-plane", *["worker"] * settings.workers]
    document: dict[str, Any] = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "name": settings.name,
        "nodes": [{"role": role, **node} for role in roles],
    }
    if settings.mode != "installer":
        registration = {"nodeRegistration": {"criSocket": f"unix://{SOCKET}"}}
        document["kubeadmConfigPatches"] = [
            yaml.safe_dump({"kind": kind, **registration}, sort_keys=False)
            for kind in ("InitConfiguration", "JoinConfiguration")
        ]
    return _yaml(document)


def labels(settings: Settings, version: str) -> dict[str, str]:
    """Those that the installer would give to a node, which the chart's RuntimeClasses select by."""
    engines = (*_ENGINES, *(("microvm",) if settings.microvm else ()))
    return {READY: "true", "forgeone.dev/version": version} | {
        f"forgeone.dev/engine-{engine}": "true" for engine in engines
    }


def hosts(settings: Settings) -> str:
    """The ``hosts.toml`` of the registry, which has no TLS."""
    return f'server = "http://{settings.registry_inside}"\n'


def forgeone(settings: Settings) -> str:
    """forgeoned's configuration on a node of the image."""
    lines = ["[registry]", f'config_path = "{REGISTRIES}"']
    lines += ["", "[cluster]", 'kubeconfig = "/etc/kubernetes/kubelet.conf"']
    if settings.mode == "beside":
        lines += ["", "[upstream]", f'socket = "{CONTAINERD}"']
    if settings.microvm:
        lines += ["", "[microvm]", f'boot_set = "{BOOT_SET}"']
    return "\n".join(lines) + "\n"


def crictl() -> str:
    """crictl's configuration on a node."""
    return f"runtime-endpoint: unix://{SOCKET}\nimage-endpoint: unix://{SOCKET}\n"


def unit(settings: Settings) -> str:
    """What the unit of forgeoned has on a node of kind besides: a kubelet starts when its runtime is there."""
    lines = ["[Unit]", "Before=kubelet.service"]
    if settings.mode == "beside":
        lines += ["Wants=containerd.service", "After=containerd.service"]
    # What it cannot mend is told by its findings, and by forgeoned itself.
    lines += ["", "[Service]", "ExecStartPre=-/opt/forgeone/current/bin/forge node prepare"]
    return "\n".join(lines) + "\n"


def values(settings: Settings) -> str:
    """The chart's values."""
    by_chart = settings.mode == "installer"
    document: dict[str, Any] = {
        # As the bundle's archive calls it, which is brought to the nodes: none is fetched from elsewhere by that name.
        "image": {"repository": "forgeone/forgeone", "pullPolicy": "Never"},
        "installer": {"enabled": by_chart, "mode": "beside", "tolerations": [{"operator": "Exists"}]},
        "admission": {"mode": "both"},
        "tests": {"runtimeClasses": [*_ENGINES, *(("microvm",) if settings.microvm else ())]},
    }
    if by_chart:
        document["config"] = {"registry": {"config_path": REGISTRIES}}
    return _yaml(document)


def _yaml(document: object) -> str:
    return str(yaml.safe_dump(document, sort_keys=False))

"""What a pod asks of the plugins that say they can do it, and who the pod is: ``runtimeConfig`` and ``CNI_ARGS``.

The names are those of https://www.cni.dev/docs/conventions/ and, for annotations, containerd's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from forgeone_shim.errors import InvalidInput
from forgeone_shim.network.bandwidth import plan_limits
from forgeone_shim.network.cni.plugin import Json
from forgeone_shim.network.facts import PodFacts
from forgeone_shim.network.hostports import plan_host_ports

POD_ANNOTATIONS: Final = "io.kubernetes.cri.pod-annotations"

# The bandwidth plugin wants a burst and Kubernetes knows none: the largest the kernel's shaper takes.
_BURST: Final = 2**32 - 1


def plan_capabilities(pod: PodFacts, pod_ranges: Sequence[str]) -> Json:
    """Every capability's argument that the pod has one for; ``pod_ranges`` are the node's ranges of pod addresses.

    :raises InvalidInput: the pod asks for what cannot be.
    """
    asked: Json = {
        "portMappings": _port_mappings(pod),
        "bandwidth": _bandwidth(pod.annotations),
        "dns": _dns(pod),
        "ipRanges": [[{"subnet": one}] for one in pod_ranges],
        "aliases": list(dict.fromkeys(name for name in (pod.name, pod.hostname) if name)),
        "cgroupPath": pod.cgroup_parent,
        POD_ANNOTATIONS: dict(pod.annotations),
    }
    return {name: value for name, value in asked.items() if value}


def plan_args(pod: PodFacts) -> dict[str, str]:
    """Who the pod is, as ``CNI_ARGS``.

    :raises InvalidInput: a name has a character in it that would begin another argument.
    """
    args = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": pod.namespace,
        "K8S_POD_NAME": pod.name,
        "K8S_POD_INFRA_CONTAINER_ID": pod.sandbox_id,
        "K8S_POD_UID": pod.uid,
    }
    for key, value in args.items():
        if any(character in value for character in ";=\0\n"):
            raise InvalidInput(key, f"{value!r} cannot be told to a CNI plugin")
    return args


def runtime_config(plugin: Mapping[str, Any], capabilities: Mapping[str, Any]) -> Json:
    """Of the capabilities' arguments those that a plugin declares."""
    declared = plugin.get("capabilities") or {}
    return {name: value for name, value in capabilities.items() if declared.get(name) is True}


def _port_mappings(pod: PodFacts) -> list[Json]:
    return [
        {
            "hostPort": port.host_port,
            "containerPort": port.container_port,
            "protocol": str(port.protocol),
            **({"hostIP": port.host_ip} if port.host_ip else {}),
        }
        for port in plan_host_ports(pod.port_mappings)
    ]


def _bandwidth(annotations: Mapping[str, str]) -> Json:
    limits = plan_limits(annotations)
    told: Json = {}
    for name, rate in (("ingress", limits.ingress), ("egress", limits.egress)):
        if rate is not None:
            told |= {f"{name}Rate": rate, f"{name}Burst": _BURST}
    return told


def _dns(pod: PodFacts) -> Json:
    if pod.dns is None:
        return {}
    asked = {"servers": pod.dns.servers, "searches": pod.dns.searches, "options": pod.dns.options}
    return {key: list(values) for key, values in asked.items() if values}

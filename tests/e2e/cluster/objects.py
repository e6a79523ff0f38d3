"""Kubernetes objects in the few forms that the tests need, as what would be written into their YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

Object = dict[str, Any]
PORT: Final = 8080
"""What every server of the tests listens on."""
_QUICK: Final = 1
"""Seconds of grace: nothing here has anything to save."""


def container(image: str, *command: str, name: str = "main", **fields: Any) -> Object:
    """A container; without a command it runs what its image says."""
    made: Object = {"name": name, "image": image, "imagePullPolicy": "IfNotPresent", **fields}
    return made | ({"command": list(command)} if command else {})


def shell(image: str, program: str, name: str = "main", **fields: Any) -> Object:
    """A container that runs a program of the shell."""
    return container(image, "sh", "-c", program, name=name, **fields)


def spec(*containers: Object, runtime_class: str, **fields: Any) -> Object:
    """What a pod is made of."""
    return {
        "runtimeClassName": runtime_class,
        "terminationGracePeriodSeconds": _QUICK,
        "containers": list(containers),
        **fields,
    }


def pod(
    name: str,
    *containers: Object,
    runtime_class: str,
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    **fields: Any,
) -> Object:
    """A pod; ``fields`` go into its spec."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": dict(annotations or {}), "labels": dict(labels or {})},
        "spec": spec(*containers, runtime_class=runtime_class, **fields),
    }


def deployment(
    name: str,
    pod_spec: Object,
    *,
    replicas: int = 1,
    strategy: Object | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """A Deployment, whose pods have the label ``app`` with its name."""
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "strategy": strategy or {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": labels, "annotations": dict(annotations or {})}, "spec": pod_spec},
        },
    }


def service(name: str, selector: Mapping[str, str] | None = None, port: int = 80) -> Object:
    """A Service of the pods with the label ``app`` of its name, or with others."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": dict(selector or {"app": name}), "ports": [{"port": port, "targetPort": PORT}]},
    }


def probe(action: Object, **fields: Any) -> Object:
    """A probe every second, which two failures decide."""
    return {"periodSeconds": 1, "failureThreshold": 2, "timeoutSeconds": 5, **action, **fields}


def executes(*command: str) -> Object:
    """A probe's or a hook's action: a command."""
    return {"exec": {"command": list(command)}}


def mounts(volume: str, path: str, **fields: Any) -> Sequence[Object]:
    """A volume mounted."""
    return [{"name": volume, "mountPath": path, **fields}]

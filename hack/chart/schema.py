"""The schema of the chart's values (JSON Schema draft 7, as Helm takes it). Nothing that is not named is taken.

What ``config`` may hold comes from forgeoned's own typed model; bounds of its values are checked by the installer,
all of them, before it changes a node.
"""

from __future__ import annotations

from typing import Any, Final

from forgeone_shim.config.loader import Key, keys

Schema = dict[str, Any]

_TYPES: Final[dict[Any, Schema]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    tuple[str, ...]: {"type": "array", "items": {"type": "string"}},
}
SET_ELSEWHERE: Final = {
    "socket": "the installer's; kubelets are pointed at it",
    "metrics.address": "metrics.address and metrics.port",
    "cluster.kubeconfig": "policies.kubeconfig",
    "cluster.required": "policies.required",
    "cluster.node_name": "each node's own",
    "upstream.socket": "installer.upstream",
}
"""Keys of the configuration that other values, or the installer, have a say in."""

_NAME: Final = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_LABEL_KEY: Final = "^([a-z0-9A-Z]([-a-zA-Z0-9.]*[a-zA-Z0-9])?/)?[a-zA-Z0-9]([-a-zA-Z0-9_.]{0,61}[a-zA-Z0-9])?$"
_LABEL_VALUE: Final = "^([a-zA-Z0-9]([-a-zA-Z0-9_.]{0,61}[a-zA-Z0-9])?)?$"
_PATH: Final = "^/\\S*$"


def values() -> Schema:
    """Of ``values.yaml`` as a whole."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart forgeone",
        **_map(
            {
                "nameOverride": _text("^([a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?)?$"),
                "fullnameOverride": _text("^([a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?)?$"),
                "commonLabels": _labels(),
                "image": _map(
                    {
                        "repository": _text("^([^\\s:@]+(:[0-9]+/[^\\s:@]+)?)?$"),
                        "tag": _text("^([a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127})?$"),
                        "digest": _text("^(sha256:[0-9a-f]{64})?$"),
                        "pullPolicy": _one_of("Always", "IfNotPresent", "Never"),
                    }
                ),
                "imagePullSecrets": _list(_map({"name": _text(_NAME)}, required=("name",))),
                "serviceAccount": _map({"annotations": _texts()}),
                "rbac": _map({"create": _truth()}),
                "runtimeClasses": _runtime_classes(),
                "installer": _installer(),
                "config": config(),
                "crds": _map({"install": _truth()}),
                "policies": _map(
                    {
                        "sync": _truth(),
                        "kubeconfig": _text(_PATH),
                        "required": _truth(),
                        "subjects": {**_list(_subject()), "minItems": 1},
                    }
                ),
                "admission": _admission(),
                "metrics": _metrics(),
                "networkPolicy": _map(
                    {
                        "enabled": _truth(),
                        "webhookFrom": _list(_any()),
                        "apiServerPorts": {**_list(_port()), "minItems": 1},
                    }
                ),
                "tests": _map({"runtimeClasses": _list(_one_of("native", "wasm", "microvm", "auto"))}),
                # What Helm itself puts in where the chart is part of another one.
                "global": {"type": "object"},
            }
        ),
    }


def config() -> Schema:
    """What ``config`` may hold: forgeoned's keys and the types of their values."""
    top: dict[str, Schema] = {}
    sections: dict[str, dict[str, Schema]] = {}
    for key in keys():
        if key.path in SET_ELSEWHERE:
            continue
        section, _, name = key.path.rpartition(".")
        (sections.setdefault(section, {}) if section else top)[name] = _type(key)
    return _map({**top, **{name: _map(found) for name, found in sections.items()}})


def _type(key: Key) -> Schema:
    return dict(_TYPES[key.type])


def _runtime_classes() -> Schema:
    one = _map(
        {
            "enabled": _truth(),
            "name": _text("^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"),
            "handler": _text(_NAME),
            "overhead": _quantities(),
            "nodeSelector": _labels(),
        }
    )
    return _map(
        {
            "create": _truth(),
            "tolerations": _tolerations(),
            "nodeSelector": _labels(),
            "native": one,
            "wasm": one,
            "microvm": one,
            "auto": one,
        }
    )


def _installer() -> Schema:
    return _map(
        {
            "enabled": _truth(),
            "mode": _one_of("beside", "replace"),
            "upstream": _text("^(/\\S+|unix:///\\S+)?$"),
            "kubelet": _one_of("auto", "kubeadm", "config", "none"),
            "service": _one_of("systemd", "none"),
            "keepVersions": _number(1, 10),
            "timeoutSeconds": _number(30, 3600),
            "maxUnavailable": _number(1, 1000),
            "cordon": _truth(),
            "taint": _truth(),
            "cordoned": _one_of("wait", "install"),
            **_placed(),
            "resources": _resources(),
            "uninstall": {
                **_map(
                    {
                        "onDelete": _truth(),
                        "drain": _truth(),
                        "force": _truth(),
                        "timeoutSeconds": _number(60, 86400),
                    }
                ),
                "not": {"properties": {"drain": {"const": True}, "force": {"const": True}}, "required": ["drain"]},
            },
        }
    )


def _admission() -> Schema:
    selector = _any()
    return _map(
        {
            "mode": _one_of("policy", "webhook", "both", "none"),
            "namespaceSelector": _map({"matchLabels": _labels(), "matchExpressions": _list(_any())}),
            "policy": _map(
                {
                    "validationActions": {
                        **_list(_one_of("Deny", "Warn", "Audit")),
                        "minItems": 1,
                        "uniqueItems": True,
                        # The API server refuses both: whoever is denied would be warned of it besides.
                        "not": {"allOf": [{"contains": {"const": "Deny"}}, {"contains": {"const": "Warn"}}]},
                    },
                    "failurePolicy": _one_of("Fail", "Ignore"),
                }
            ),
            "webhook": _map(
                {
                    "replicas": _number(1, 16),
                    "failurePolicy": _one_of("Fail", "Ignore"),
                    "timeoutSeconds": _number(1, 30),
                    "objectSelector": selector,
                    "mutate": _truth(),
                    "issuersConfigMap": _text("^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$"),
                    "nodePolicies": _list(_text("^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$")),
                    # Its user is not root.
                    "port": _number(1024, 65535),
                    "resources": _resources(),
                    **_placed(),
                    "podDisruptionBudget": _map({"enabled": _truth(), "maxUnavailable": _number(1, 15)}),
                }
            ),
        }
    )


def _metrics() -> Schema:
    return _map(
        {
            "enabled": _truth(),
            "address": _text("^([0-9]{1,3}([.][0-9]{1,3}){3}|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*)$"),
            "port": _port(),
            "monitor": _map(
                {
                    "enabled": _truth(),
                    "labels": _labels(),
                    "interval": _text("^[0-9]+(ms|s|m)$"),
                    "containers": _truth(),
                    "tlsConfig": _any(),
                }
            ),
            "rules": _map(
                {
                    "enabled": _truth(),
                    "labels": _labels(),
                    "slowPodSeconds": {"type": "number", "exclusiveMinimum": 0},
                }
            ),
            "dashboard": _map({"enabled": _truth(), "labels": _labels(), "annotations": _texts()}),
        }
    )


def _placed() -> Schema:
    return {
        "nodeSelector": _labels(),
        "tolerations": _tolerations(),
        "affinity": _any(),
        "priorityClassName": _text("^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"),
        "podAnnotations": _texts(),
        "podLabels": _labels(),
    }


def _subject() -> Schema:
    return _map(
        {
            "apiGroup": _one_of("", "rbac.authorization.k8s.io"),
            "kind": _one_of("Group", "User", "ServiceAccount"),
            "name": {"type": "string", "minLength": 1},
            "namespace": _text(_NAME),
        },
        required=("kind", "name"),
    )


def _tolerations() -> Schema:
    return _list(
        _map(
            {
                "key": {"type": "string"},
                "operator": _one_of("Exists", "Equal"),
                "value": {"type": "string"},
                "effect": _one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
                "tolerationSeconds": {"type": "integer"},
            }
        )
    )


def _resources() -> Schema:
    return _map({"requests": _quantities(), "limits": _quantities()})


def _quantities() -> Schema:
    quantity = {"type": ["string", "integer"], "pattern": "^[0-9]+([.][0-9]+)?([munkMGTPE]|[KMGTPE]i)?$"}
    return {"type": "object", "additionalProperties": quantity}


def _labels() -> Schema:
    return {
        "type": "object",
        "propertyNames": {"pattern": _LABEL_KEY},
        "additionalProperties": {"type": "string", "pattern": _LABEL_VALUE},
    }


def _texts() -> Schema:
    return {"type": "object", "additionalProperties": {"type": "string"}}


def _any() -> Schema:
    """A part of Kubernetes' own, which the API server checks."""
    return {"type": "object"}


def _map(properties: dict[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    made: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**made, "required": list(required)} if required else made


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _one_of(*allowed: str) -> Schema:
    return {"type": "string", "enum": list(allowed)}


def _text(pattern: str) -> Schema:
    return {"type": "string", "pattern": pattern}


def _number(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _port() -> Schema:
    return _number(1, 65535)


def _truth() -> Schema:
    return {"type": "boolean"}

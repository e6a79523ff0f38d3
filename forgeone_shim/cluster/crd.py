"""The CustomResourceDefinition of ZTAPolicy, made from the typed model of policies. Pure.

The schema tells whoever applies a policy of slips; nodes read every object by their own code as well and rely on none
of it. A field that is not in the schema is an error for clients that validate strictly, as kubectl and server-side
apply do. There are no defaults in it: what a policy leaves unsaid stays unsaid, and so its digest is the same
everywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, get_args, get_origin, get_type_hints

from forgeone_shim.cluster.names import ACCEPTED, CRD_NAME, GROUP, KIND, PLURAL, VERSION
from forgeone_shim.contract import policy, reader, values
from forgeone_shim.contract.facts import Point
from forgeone_shim.contract.model import (
    DRIFTS,
    EXEC_MODES,
    PROTOCOLS,
    VOLUME_KINDS,
    Behaviour,
    BusRule,
    Ceilings,
    Contract,
    NetworkRule,
    Rbac,
    TrustProfile,
)

Schema = dict[str, Any]

_TEXTS: Final[Mapping[type, Mapping[str, str]]] = {
    Contract: {
        "trusted_issuers": "Who must have signed the image, one of them: key:sha256:HEX, x509:SUBJECT or"
        " keyless:IDENTITY.",
        "minimum_entropy": "Bits of fresh seed that a container must have had before it runs.",
        "exec_mode": "The engine that must run it.",
        "profile": "What a container may consist of.",
        "rbac": "What may be done to a container while it lives.",
        "behaviour": "Whether its system calls are watched, and what drift from the baseline does.",
    },
    TrustProfile: {
        "trust_label": "What it is called by rules.",
        "images": "Images that may be used: GLOB, GLOB@sha256:HEX, or an object with repository and digests."
        " * is anything but /, ** anything.",
        "capabilities": "The most that a process of it could have, with or without CAP_.",
        "privileged": "Whether it may be privileged.",
        "host_network": "Whether it may use the host's network.",
        "host_pid": "Whether it may see the host's processes.",
        "host_ipc": "Whether it may use the host's IPC.",
        "host_paths": "Directories and files of the host that may be mounted, with all below them: /PATH, /PATH:ro, or"
        " an object with path and readonly.",
        "volumes": "Kinds of volumes that may be mounted.",
        "resources": "The highest limits; a container without a limit is refused.",
        "network": "Whom the pod may talk to first, and by whom it may be talked to.",
        "bus": "Subjects of the message bus.",
        "snapshot": "Whether its memory may be written to a file, and come from one.",
        "mixed_engines": "Whether its pod may have containers of several engines.",
    },
    Ceilings: {
        "memory": "Bytes, or a text such as 64Mi.",
        "cpu": "CPUs: 2, '0.5' or 500m.",
        "pids": "Processes and threads.",
    },
    NetworkRule: {
        "egress": "Whom the pod may talk to: PEER [PROTOCOL[/PORTS]], or an object with cidr, pod, protocol and ports."
        " PEER is a range, pod:NAMESPACE/NAME, pod:NAMESPACE/* or any. Left out: anybody; empty: nobody.",
        "ingress": "Who may talk to the pod, said likewise.",
        "node": "Whether the node itself may come in besides: probes, host ports.",
        "dns": "Whether the pod may ask its name servers besides.",
    },
    BusRule: {"publish": "What it may publish.", "subscribe": "What it may subscribe to."},
    Rbac: {
        "exec": "Whether commands may be executed in it.",
        "attach": "Whether it may be attached to.",
        "port_forward": "Whether its ports may be forwarded.",
        "checkpoint": "Whether it may be checkpointed.",
        "update": "Whether its limits may be changed.",
    },
    Behaviour: {
        "watch": "Whether its system calls, or calls to the host, are watched.",
        "on_drift": "What is done when it behaves otherwise than its baseline.",
        "baseline": "The baseline that is meant, sha256:HEX, which has it watched, too.",
    },
}


def crd() -> Schema:
    """The whole object, as ``kubectl apply`` takes it."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": CRD_NAME},
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["ztap"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _columns(),
                    "schema": {"openAPIV3Schema": schema()},
                }
            ],
        },
    }


def manifest() -> str:
    """The object as YAML, without references."""
    import yaml

    # What is shared within it would become references.
    return yaml.safe_dump(json.loads(json.dumps(crd())), sort_keys=False, width=120)


def schema() -> Schema:
    """Of one object (structural, as apiextensions.k8s.io/v1 asks)."""
    return {
        "type": "object",
        "description": "What nodes demand of pods, whatever the pods say: a contract that they are held to, signatures,"
        " and rules in CEL.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _spec(),
            "status": _status(),
        },
        "x-kubernetes-validations": [
            {
                "rule": "self.metadata.name.size() <= 63",
                "message": "metadata.name: the name of a policy has at most 63 characters",
            }
        ],
    }


def _spec() -> Schema:
    globs = _list(_text(re.compile(r"[a-z0-9*]([-a-z0-9.*]{0,251}[a-z0-9*])?")), least=1)
    return {
        "type": "object",
        "properties": {
            "floor": _told({"type": "boolean"}, "true: it applies to every pod."),
            "namespaces": _told(globs, "The namespaces whose pods it is for, names or names with *. Left out: all."),
            "exceptNamespaces": _told(dict(globs), "Namespaces whose pods it is not for."),
            "contract": _told(_object(Contract), "What everything it applies to is held to."),
            "requireSignedContract": _told(
                {"type": "boolean"}, "true: a pod must bring a contract that an issuer has signed."
            ),
            "contractIssuers": _told(
                _list(_text(values.DIGEST), least=1),
                "The ids of the keys that count for that. Left out: each that the node trusts.",
            ),
            "requireVerifiedImage": _told(
                {"type": "boolean"}, "true: somebody who is trusted must have signed the image."
            ),
            "rules": {
                "type": "array",
                "maxItems": policy.MAX_RULES,
                "description": "Expressions in CEL that must be true.",
                "items": _rule(),
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        },
        "x-kubernetes-validations": [
            {
                "rule": "!has(self.contractIssuers) || (has(self.requireSignedContract) && self.requireSignedContract)",
                "message": "contractIssuers means nothing without requireSignedContract",
            }
        ],
    }


def _rule() -> Schema:
    long: Schema = {"type": "string", "minLength": 1, "maxLength": policy.MAX_TEXT}
    return {
        "type": "object",
        "required": ["name", "at", "expression"],
        "properties": {
            "name": _told(_text(values.LABEL), "What a denial calls it."),
            "at": {
                **_list({"type": "string", "enum": [str(one) for one in Point]}, least=1),
                "description": "The points of a container's life at which it is asked.",
            },
            "expression": _told(dict(long), "CEL; false, and what cannot be decided, denies."),
            "message": _told(dict(long), "What a denial says in place of the expression."),
        },
    }


def _status() -> Schema:
    text: Schema = {"type": "string"}
    return {
        "type": "object",
        "description": "What nodes say of it.",
        "properties": {
            "conditions": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                    "properties": {
                        "type": {**text, "maxLength": 316},
                        "status": {**text, "enum": ["True", "False", "Unknown"]},
                        "reason": {**text, "minLength": 1, "maxLength": 1024},
                        "message": {**text, "maxLength": 32768},
                        "lastTransitionTime": {**text, "format": "date-time"},
                        "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                    },
                },
            },
        },
    }


def _columns() -> list[Schema]:
    accepted = f'.status.conditions[?(@.type=="{ACCEPTED}")]'
    return [
        {"name": "Floor", "type": "boolean", "jsonPath": ".spec.floor"},
        {"name": ACCEPTED, "type": "string", "jsonPath": f"{accepted}.status"},
        {"name": "Namespaces", "type": "string", "jsonPath": ".spec.namespaces", "priority": 1},
        {"name": "Message", "type": "string", "jsonPath": f"{accepted}.message", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]


@dataclass(frozen=True, slots=True)
class _Either:
    """A text, or an object with these keys. A structural schema cannot say both, so what is an object is kept whole."""

    properties: Mapping[str, Schema]

    def schema(self) -> Schema:
        """Constraints of objects do not concern texts."""
        return {"x-kubernetes-preserve-unknown-fields": True, "properties": dict(self.properties)}


def _object(kind: type) -> Schema:
    """Of a class of the model, field by field; what a policy cannot say is left out."""
    hints = get_type_hints(kind)
    made: dict[str, Schema] = {}
    for item in fields(kind):
        if (kind, item.name) == (Contract, "runtime_policy_id"):
            continue
        made[item.name] = _told(_field(kind, item.name, hints[item.name]), _TEXTS[kind][item.name])
    return {"type": "object", "properties": made}


def _field(kind: type, name: str, hint: Any) -> Schema:
    special = _special(kind, name)
    if special is not None:
        return special
    inner = next((one for one in get_args(hint) if one is not type(None)), hint) if get_origin(hint) else hint
    if is_dataclass(inner) and isinstance(inner, type):
        return _object(inner)
    if inner is bool:
        return {"type": "boolean"}
    raise TypeError(f"{kind.__name__}.{name} has no schema")


def _special(kind: type, name: str) -> Schema | None:
    """What values of a field may be, where its type does not say."""
    subjects = _list({"type": "string", "minLength": 1, "maxLength": values.MAX_SUBJECT})
    known: Mapping[tuple[type, str], Schema] = {
        (Contract, "trusted_issuers"): _list(_text(values.ISSUER, reader.MAX_TEXT)),
        (Contract, "minimum_entropy"): {"type": "integer", "minimum": 0, "maximum": reader.MAX_ENTROPY},
        (Contract, "exec_mode"): {"type": "string", "enum": list(EXEC_MODES[1:])},
        (TrustProfile, "trust_label"): _text(values.LABEL),
        (TrustProfile, "images"): _list(
            _Either(
                {
                    "repository": _text(values.GLOB),
                    "digests": _list(_text(values.DIGEST), least=1),
                }
            ).schema()
        ),
        (TrustProfile, "capabilities"): _list(_text(re.compile("[A-Za-z_]+"), 64)),
        (TrustProfile, "host_paths"): _list(
            _Either({"path": _text(re.compile("/.*"), reader.MAX_TEXT), "readonly": {"type": "boolean"}}).schema()
        ),
        (TrustProfile, "volumes"): _list({"type": "string", "enum": list(VOLUME_KINDS)}),
        (Ceilings, "memory"): _number_or_text(values.MEMORY),
        (Ceilings, "cpu"): _number_or_text(values.CPU),
        (Ceilings, "pids"): {"type": "integer", "minimum": 1, "maximum": 2**22},
        (NetworkRule, "egress"): _list(_peer()),
        (NetworkRule, "ingress"): _list(_peer()),
        (BusRule, "publish"): subjects,
        (BusRule, "subscribe"): subjects,
        (Behaviour, "on_drift"): {"type": "string", "enum": list(DRIFTS)},
        (Behaviour, "baseline"): _text(values.DIGEST),
    }
    return known.get((kind, name))


def _peer() -> Schema:
    ports = _list(_number_or_text(re.compile("[0-9]{1,5}(-[0-9]{1,5})?")), least=1)
    return _Either(
        {
            "cidr": {"type": "string", "minLength": 1, "maxLength": 64},
            "pod": {"type": "string", "minLength": 1, "maxLength": 320},
            "protocol": {"type": "string", "enum": list(PROTOCOLS[1:])},
            "ports": ports,
        }
    ).schema()


def _list(item: Schema, *, least: int = 0) -> Schema:
    return {"type": "array", "maxItems": reader.MAX_LIST, **({"minItems": least} if least else {}), "items": item}


def _text(pattern: re.Pattern[str], longest: int = 320) -> Schema:
    return {"type": "string", "maxLength": longest, "pattern": f"^({pattern.pattern})$"}


def _number_or_text(pattern: re.Pattern[str]) -> Schema:
    return {"x-kubernetes-int-or-string": True, "maxLength": 32, "pattern": f"^({pattern.pattern})$"}


def _told(made: Schema, text: str) -> Schema:
    return {**made, "description": text}

"""ValidatingAdmissionPolicies made from the typed model of contracts: what an API server can tell by itself. Pure.

    python -m cri.admission.policy [--part policies|bindings|all] [--output FILE]

What they refuse no node would take. They see names of fields, the form of simple values, and the engine beside the
RuntimeClass; documents, signatures and what policies demand are left to the webhook and to nodes. That a policy exists
cannot be asked so: an expression sees one parameter at a time, and each of them has to agree.

https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from forgeone_shim.config import checks
from forgeone_shim.config.handlers import BUILT_IN_PREFIX, DEFAULT_ENGINE, WASM_ENGINE
from forgeone_shim.contract import parse, reader, values
from forgeone_shim.contract.model import DRIFTS, EXEC_MODES, VOLUME_KINDS
from forgeone_shim.kernel import capabilities

API: Final = "admissionregistration.k8s.io/v1"
NAME: Final = "contracts.forgeone.dev"
MIRROR: Final = "kubernetes.io/config.mirror"
"""What a kubelet's picture of a static pod has. To refuse it would hide the pod, and not keep it from being started."""

PARTS: Final = ("policies", "bindings", "all")

_HEADER: Final = (
    "# Made by `python -m cri.admission.policy` from the typed model of contracts; not to be edited.\n"
    "# API servers of 1.30 and newer refuse pods, and what makes pods, whose contract no node would take.\n"
)
_ENGINES: Final = EXEC_MODES[1:]
_WIDTH: Final = 118
_CHANGES: Final = ("CREATE", "UPDATE")


@dataclass(frozen=True, slots=True)
class Target:
    """Kinds whose pods are in the same place, as an expression names it."""

    prefix: str
    template: str
    resources: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def name(self) -> str:
        """Of the policy."""
        return f"{self.prefix}{NAME}"

    @property
    def is_pod(self) -> bool:
        """Whether it is pods themselves, as they will be."""
        return self.template == "object"


TARGETS: Final = (
    Target("", "object", (("", ("pods",)),)),
    Target(
        "workloads.",
        "object.spec.template",
        (
            ("", ("replicationcontrollers",)),
            ("apps", ("daemonsets", "deployments", "replicasets", "statefulsets")),
            ("batch", ("jobs",)),
        ),
    ),
    Target("cronjobs.", "object.spec.jobTemplate.spec.template", (("batch", ("cronjobs",)),)),
)


def policies() -> list[dict[str, Any]]:
    """The policies, one for each place that kinds have their pods in: types differ."""
    return [_policy(target) for target in TARGETS]


def bindings() -> list[dict[str, Any]]:
    """What puts them in force, everywhere."""
    return [
        {
            "apiVersion": API,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": target.name},
            "spec": {"policyName": target.name, "validationActions": ["Deny"]},
        }
        for target in TARGETS
    ]


def text(part: str = "all") -> str:
    """One of :data:`PARTS` as YAML; the same model is the same text."""
    documents = (policies() if part != "bindings" else []) + (bindings() if part != "policies" else [])
    dumped = yaml.dump_all(
        documents, Dumper=_Dumper, sort_keys=False, width=_WIDTH, default_flow_style=False, explicit_start=False
    )
    return _HEADER + str(dumped)


def forms() -> Mapping[str, str]:
    """Of each field that has one value: the pattern (RE2) that the whole of it must match."""
    found = dict.fromkeys(_of_kind("truth"), "true|false") | dict.fromkeys(_of_kind("number"), "[0-9]{1,15}")
    return found | {
        "runtime_policy_id": checks.POLICY_NAME.pattern,
        "exec_mode": "|".join(_ENGINES),
        "trust_label": values.LABEL.pattern,
        "memory": values.MEMORY.pattern,
        "cpu": values.CPU.pattern,
        "on_drift": "|".join(DRIFTS),
        "baseline": values.DIGEST.pattern,
    }


def members() -> Mapping[str, str]:
    """Of each field that is a list: the pattern that each member must match."""
    names = "|".join(sorted(name.removeprefix("CAP_") for name in capabilities.KNOWN))
    return dict.fromkeys(_of_kind("list"), ".+") | {
        "trusted_issuers": r"[a-z0-9]+:.+",
        "images": f"{values.GLOB.pattern}(@{values.DIGEST.pattern})?",
        "capabilities": f"(?i:CAP_)?(?i:{names})",
        "host_paths": "/.*",
        "volumes": "|".join(VOLUME_KINDS),
    }


def _of_kind(kind: str) -> tuple[str, ...]:
    return tuple(sorted(name for name, (one, _) in parse.FIELDS.items() if one == kind))


def _policy(target: Target) -> dict[str, Any]:
    return {
        "apiVersion": API,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": target.name},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": [group],
                        "apiVersions": ["v1"],
                        "operations": list(_CHANGES),
                        "resources": list(resources),
                    }
                    for group, resources in target.resources
                ]
            },
            "matchConditions": [{"name": name, "expression": one} for name, one in _conditions(target)],
            "variables": [{"name": name, "expression": one} for name, one in _variables(target)],
            "validations": [
                {
                    "expression": f"size(variables.{name}) == 0",
                    "message": message,
                    "messageExpression": _told(name, message),
                }
                for name, message in _findings(target)
            ],
            "auditAnnotations": [
                {
                    "key": "fields",
                    "valueExpression": "variables.said.map(one, one.rest).join(',')",
                }
            ],
        },
    }


def _conditions(target: Target) -> Iterator[tuple[str, str]]:
    # What was there before the policy has to be able to lose its finalizers, and to be scaled down.
    if not target.is_pod:
        before = target.template.replace("object", "oldObject", 1)
        yield "template-is-new", f"request.operation == 'CREATE' || {target.template} != {before}"
        return
    # Networks and controllers write what is theirs to pods that run.
    new, old = "object.metadata.annotations", "oldObject.metadata.annotations"
    yield (
        "contract-is-new",
        f"request.operation == 'CREATE' || has({new}) && {new}.exists(key, key.startsWith('{parse.PREFIX}')"
        f" && !(has({old}) && key in {old} && {old}[key] == {new}[key]))",
    )
    yield (
        "no-mirror-of-a-kubelet",
        f"!has(object.metadata.annotations) || !('{MIRROR}' in object.metadata.annotations)"
        " || !request.userInfo.username.startsWith('system:node:')",
    )


def _variables(target: Target) -> Iterator[tuple[str, str]]:
    template, skip = target.template, len(parse.PREFIX)
    held = f"has({template}.metadata.annotations)"
    if not target.is_pod:
        held = f"has({template}.metadata) && {held}"
    yield "annotations", f"{held} ? {template}.metadata.annotations : {{}}"
    yield (
        "said",
        # A map's values are of one type, and what comes of annotations has none before it is told.
        f"variables.annotations.filter(key, key.startsWith('{parse.PREFIX}')).map(key, {{"
        f"'key': string(key), 'name': string(key).substring({skip}).split('.')[0],"
        f" 'rest': string(key).substring({skip}), 'value': string(variables.annotations[key]),"
        " 'text': string(variables.annotations[key]).trim()})",
    )
    # A list in JSON may have commas in its members.
    yield (
        "lists",
        f"variables.said.filter(one, one.name in {_list(_of_kind('list'))} && one.text != '{parse.NOTHING}'"
        f" && !one.text.startsWith('[\"') && size(one.value) <= {reader.MAX_DOCUMENT})",
    )
    yield "engine", _engine(template)
    known = _list(sorted({parse.DOCUMENT, *parse.FIELDS}))
    yield "unknown", f"variables.said.filter(one, !(one.name in {known}))"
    label = values.LABEL.pattern
    yield "unnamed", f"variables.said.filter(one, !one.rest.matches('^[^.]*([.]{label})?$'))"
    of_pods = _list(sorted(parse.OF_PODS))
    yield "ofPods", f"variables.said.filter(one, one.name in {of_pods} && one.rest.contains('.'))"
    yield "empty", "variables.said.filter(one, one.value == '')"
    yield "long", f"variables.said.filter(one, size(one.value) > {reader.MAX_DOCUMENT})"
    yield "malformed", _either("variables.said", forms(), "!one.value.matches('{}')")
    yield "crowded", f"variables.lists.filter(one, size(one.value.split(',')) > {reader.MAX_LIST})"
    # An API server has no patience for a look at each of very many members.
    yield "sized", f"variables.lists.filter(one, size(one.value.split(',')) <= {reader.MAX_LIST})"
    yield (
        "alien",
        _either("variables.sized", members(), "one.value.split(',').exists(item, !item.trim().matches('{}'))"),
    )
    engines = f"one.name == 'exec_mode' && one.value in {_list(_ENGINES)}"
    yield (
        "unfit",
        f"variables.said.filter(one, {engines} && variables.engine in {_list(_ENGINES)}"
        " && one.value != variables.engine"
        f" && !(variables.engine == '{WASM_ENGINE}' && one.value == '{DEFAULT_ENGINE}'))",
    )
    if target.is_pod:
        yield (
            "unplaced",
            f"variables.said.filter(one, {engines} && variables.engine == '' && one.value != '{DEFAULT_ENGINE}')",
        )


def _either(among: str, patterns: Mapping[str, str], wrong: str) -> str:
    """Those whose value is not as the pattern of their field has it; fields of one pattern together."""
    asked = " || ".join(
        f"(one.name in {_list(names)} && {wrong.format(_whole(pattern))})" for pattern, names in _by_pattern(patterns)
    )
    return f"{among}.filter(one, {asked})"


def _engine(template: str) -> str:
    """Of a pod's RuntimeClass: the engine of a built-in handler, ``other``, or empty where the pod has none."""
    given, spec = f"{template}.spec.runtimeClassName", f"has({template}.spec.runtimeClassName)"
    if not template.endswith("object"):
        spec = f"has({template}.spec) && {spec}"
    return (
        f"!({spec}) || {given} == '' ? '' : {given}.startsWith('{BUILT_IN_PREFIX}')"
        f" ? {given}.substring({len(BUILT_IN_PREFIX)}) : 'other'"
    )


def _findings(target: Target) -> Iterator[tuple[str, str]]:
    """Lists of what is wrong, and what about it."""
    yield "unknown", f"an annotation below {parse.PREFIX} is no field of a contract"
    yield "unnamed", f"an annotation below {parse.PREFIX} is for what no container can be called"
    yield "ofPods", "network and port-forward are of pods, and cannot be of one container"
    yield "empty", f"a field of a contract is empty (an empty list is written {parse.NOTHING})"
    yield "long", f"a field of a contract is longer than {reader.MAX_DOCUMENT} characters"
    yield "malformed", "a field of a contract has a value that it cannot have"
    yield "alien", "a list of a contract has a member that it cannot have"
    yield "crowded", f"a list of a contract has more than {reader.MAX_LIST} members"
    yield "unfit", "exec_mode demands another engine than the RuntimeClass has"
    if target.is_pod:
        yield "unplaced", "exec_mode demands an engine that only a RuntimeClass has, and the pod names none"


def _told(name: str, message: str) -> str:
    return f"'{message}: ' + variables.{name}.map(one, one.key).join(', ')"


def _by_pattern(given: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Fields of one form together: a field more is a word more."""
    return [
        (pattern, sorted(name for name, one in given.items() if one == pattern))
        for pattern in sorted({*given.values()})
    ]


def _whole(pattern: str) -> str:
    return f"^({pattern})$".replace("\\", "\\\\")


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(f"'{name}'" for name in names) + "]"


class _Dumper(yaml.SafeDumper):
    """Long expressions are folded where there are blanks."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)


def _folded(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", value, style=">" if len(value) > 60 and " " in value else None
    )


_Dumper.add_representer(str, _folded)


def main(argv: Sequence[str] | None = None) -> int:
    """Print them, or write them to a file."""
    parser = argparse.ArgumentParser(prog="python -m cri.admission.policy", description="Write the admission policies.")
    parser.add_argument("--part", choices=PARTS, default="all")
    parser.add_argument("--output", default="", metavar="FILE", help="default: standard output")
    args = parser.parse_args(argv)
    made = text(args.part)
    if args.output:
        Path(args.output).write_text(made, encoding="utf-8")
    else:
        sys.stdout.write(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The README's table of values, from the comments of ``values.yaml``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

BEGIN: Final = "<!-- values: written by python -m hack.chart -->"
END: Final = "<!-- end of values -->"


@dataclass(frozen=True, slots=True)
class Value:
    """A key with its default, and what the comment above it, or above what it is in, says."""

    path: str
    default: Any
    text: str


def page(before: str, values: str) -> str:
    """The page with its table made anew.

    :raises ValueError: the marks are not there once each.
    """
    if before.count(BEGIN) != 1 or before.count(END) != 1:
        raise ValueError(f"README.md needs {BEGIN} and {END}, once each")
    head, rest = before.split(BEGIN)
    return f"{head}{BEGIN}\n{table(values)}{END}{rest.split(END)[1]}"


def table(values: str) -> str:
    """A row a value."""
    rows = [f"| `{one.path}` | `{_shown(one.default)}` | {one.text} |" for one in described(values)]
    return "\n".join(["| value | default | meaning |", "|---|---|---|", *rows]) + "\n"


def described(values: str) -> Iterator[Value]:
    """Every value that can be set, in the file's order; maps and lists that hold no keys of ours are one.

    :raises ValueError: one has no comment and is not plain from the one that it is in.
    """
    node = yaml.compose(values, Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        raise TypeError("values.yaml is not a map")
    yield from _below(node, "", values.splitlines(), yaml.safe_load(values))


def _below(node: yaml.MappingNode, prefix: str, lines: list[str], data: Any) -> Iterator[Value]:
    for key, value in node.value:
        path, told, default = prefix + key.value, _comment(lines, key.start_mark.line), data[key.value]
        block = isinstance(value, yaml.MappingNode) and not value.flow_style and value.value
        if block and path not in _WHOLE:
            yield from _below(value, f"{path}.", lines, default)
        else:
            yield Value(path, default, told or _PLAIN.get(key.value, ""))


def _comment(lines: list[str], line: int) -> str:
    found: list[str] = []
    while line and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        found.insert(0, lines[line].lstrip().removeprefix("#").strip())
    return " ".join(found)


def _shown(default: Any) -> str:
    return json.dumps(default, ensure_ascii=False).replace("|", "\\|")


_WHOLE: Final = frozenset(
    {
        "admission.namespaceSelector",
        "admission.webhook.nodeSelector",
        "admission.webhook.resources",
        "installer.nodeSelector",
        "installer.resources",
        "metrics.dashboard.labels",
    }
)
"""Maps whose keys are Kubernetes'."""

_PLAIN: Final = {
    "affinity": "Where its pods may be.",
    "annotations": "Annotations.",
    "enabled": "Whether there is one.",
    "handler": "The runtime handler.",
    "interval": "How often it is scraped.",
    "labels": "Labels that the operator selects by.",
    "name": "What pods name as `runtimeClassName`.",
    "nodeSelector": "Further labels that a node must have.",
    "overhead": "What is counted besides.",
    "podAnnotations": "Annotations of its pods.",
    "podLabels": "Labels of its pods.",
    "port": "The port there.",
    "priorityClassName": "The priority of its pods.",
    "pullPolicy": "When it is pulled.",
    "replicas": "Pods of it.",
    "resources": "What its pods ask for, and are held to.",
    "tolerations": "Taints that its pods tolerate.",
}
"""Names that say it themselves."""

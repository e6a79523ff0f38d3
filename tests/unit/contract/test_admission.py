"""The admission policy for API servers: what it refuses no node would take, and what nodes take it lets through."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from cel_expr_python import cel

from forgeone_shim.contract import parse
from forgeone_shim.contract.parse import OF_PODS, PREFIX, Pod
from forgeone_shim.errors import InvalidInput
from tests.unit.contract.test_parse import SINGLES

FILE = Path(__file__).resolve().parents[3] / "hack/kubernetes/contracts.yaml"
POLICY, BINDING = yaml.safe_load_all(FILE.read_text())
SPEC = POLICY["spec"]
ENV = cel.NewEnv(variables={"object": cel.Type.DYN, "variables": cel.Type.DYN})


def answers(annotations: Mapping[str, str] | None) -> list[str]:
    """The messages of what does not hold."""
    given: dict[str, Any] = {"metadata": {} if annotations is None else {"annotations": dict(annotations)}}
    known: dict[str, Any] = {}
    for one in SPEC["variables"]:
        found = ENV.compile(one["expression"]).eval(ENV.Activation({"object": given, "variables": known}))
        known[one["name"]] = found.plain_value()
    held = {
        one["message"]: ENV.compile(one["expression"]).eval(ENV.Activation({"object": given, "variables": known}))
        for one in SPEC["validations"]
    }
    assert all(value.type() == cel.Type.BOOL for value in held.values())
    return [message for message, value in held.items() if value.value() is not True]


def refused_by_nodes(annotations: Mapping[str, str]) -> bool:
    try:
        parse.offered(annotations, pod=Pod("shop", "web"))
    except InvalidInput:
        return True
    return False


def test_it_knows_every_field() -> None:
    known = {one["name"]: yaml.safe_load(one["expression"]) for one in SPEC["variables"][1:]}
    assert known["fields"] == sorted({parse.DOCUMENT, *parse.FIELDS})
    assert known["permissions"] == sorted(name for name, (kind, _) in parse.FIELDS.items() if kind == "truth")
    assert known["numbers"] == sorted(name for name, (kind, _) in parse.FIELDS.items() if kind == "number")
    assert known["ofPods"] == sorted(OF_PODS)
    assert BINDING["spec"]["policyName"] == POLICY["metadata"]["name"]


@pytest.mark.parametrize("name", SINGLES)
def test_what_a_node_takes_it_lets_through(name: str) -> None:
    assert answers({f"{PREFIX}{name}": SINGLES[name][0], "other/key": ""}) == []
    assert (answers({f"{PREFIX}{name}.web": SINGLES[name][0]}) == []) is (name not in OF_PODS)


@pytest.mark.parametrize(("name", "value"), [(name, bad) for name, (_, _, values) in SINGLES.items() for bad in values])
def test_what_it_refuses_no_node_takes(name: str, value: str) -> None:
    given = {f"{PREFIX}{name}": value}
    assert refused_by_nodes(given)
    kind, _ = parse.FIELDS[name]
    assert answers(given) or kind in {"list", "text", "number"}


@pytest.mark.parametrize(
    "key",
    [
        "exce",
        "exec-mode",
        "Exec",
        "",
        "contracts",
        "exec_",
        "contract_",
        "x.exec",
        "egress.web",
        "node.web",
        "exec.",
        "a.b.c",
        "exec.-",
    ],
)
def test_a_key_that_is_none_is_refused(key: str) -> None:
    given = {f"{PREFIX}{key}": "true"}
    assert answers(given)
    assert refused_by_nodes(given)


def test_pods_without_a_contract_pass() -> None:
    assert answers(None) == answers({}) == answers({"zta.forgeone.devel/x": ""}) == []
    assert answers({f"{PREFIX}contract": "rbac: {exec: false}", f"{PREFIX}contract.web": "{}"}) == []


@pytest.mark.parametrize(
    ("operation", "before", "after", "asked"),
    [
        ("CREATE", None, {"metadata": {"annotations": {"a": "b"}}}, True),
        ("UPDATE", {"metadata": {"annotations": {"a": "b"}}}, {"metadata": {"annotations": {"a": "b"}}}, False),
        ("UPDATE", {"metadata": {"annotations": {"a": "b"}}}, {"metadata": {"annotations": {"a": "c"}}}, True),
        ("UPDATE", {"metadata": {}}, {"metadata": {"annotations": {"a": "b"}}}, True),
        ("UPDATE", {"metadata": {}}, {"metadata": {}}, True),
    ],
)
def test_pods_from_before_can_be_changed_and_go(
    operation: str, before: dict[str, Any] | None, after: dict[str, Any], asked: bool
) -> None:
    (condition,) = SPEC["matchConditions"]
    names = ("request", "object", "oldObject")
    env = cel.NewEnv(variables=dict.fromkeys(names, cel.Type.DYN))
    given = dict(zip(names, ({"operation": operation}, after, before), strict=True))
    assert env.compile(condition["expression"]).eval(env.Activation(given)).value() is asked

"""The schema says what the node's own code does, as far as a schema can."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from forgeone_shim.cli.main import main
from forgeone_shim.cluster import crd
from forgeone_shim.contract import parse, policy
from forgeone_shim.errors import InvalidInput
from tests.unit.cluster.test_objects import SPEC, made
from tests.unit.contract.test_parse import SINGLES

SCHEMA = crd.schema()
CONTRACT = SCHEMA["properties"]["spec"]["properties"]["contract"]


def paths(schema: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Of what is no object."""
    for name, inner in schema["properties"].items():
        if inner.get("type") == "object":
            yield from paths(inner, (*prefix, name))
        else:
            yield (*prefix, name)


def refused_by_schema(spec: Any) -> bool:
    return not jsonschema.Draft202012Validator(SCHEMA).is_valid(made(spec=spec))


def test_it_has_every_field_of_a_contract_and_no_other() -> None:
    known = {path for _, path in parse.FIELDS.values()} - {("runtime_policy_id",)}
    assert set(paths(CONTRACT)) == known


def test_it_has_every_field_of_a_policy_and_no_other() -> None:
    known = set(SCHEMA["properties"]["spec"]["properties"])
    for name in known:
        # One that is not known is refused for that.
        with pytest.raises(InvalidInput) as caught:
            policy.parse("x.json", b'{"apiVersion": "forgeone.dev/v1", "kind": "ZTAPolicy", "metadata": {"name": "x"},'
                         b'"spec": {"%s": "?"}}' % name.encode())  # fmt: skip
        assert "not a field" not in caught.value.reason
    assert known == {
        "floor",
        "namespaces",
        "exceptNamespaces",
        "contract",
        "requireSignedContract",
        "contractIssuers",
        "requireVerifiedImage",
        "rules",
    }


def contract_with(name: str, value: object) -> dict[str, Any]:
    made_: Any = value
    for part in reversed(parse.FIELDS[name][1]):
        made_ = {part: made_}
    return {"contract": made_}


def typed(name: str, text: str) -> object:
    kind = parse.FIELDS[name][0]
    if kind == "truth":
        return text == "true"
    if kind == "number":
        return int(text)
    return [one.strip() for one in text.split(",")] if kind == "list" else text


@pytest.mark.parametrize("name", sorted(set(SINGLES) - {"runtime_policy_id"}))
def test_what_a_node_takes_the_schema_takes(name: str) -> None:
    spec = contract_with(name, typed(name, SINGLES[name][0]))
    jsonschema.validate(made(spec=spec), SCHEMA)


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        {},
        {"contract": {"profile": {"images": [{"repository": "**", "digests": ["sha256:" + "a" * 64]}, "a/b"]}}},
        {"contract": {"profile": {"host_paths": [{"path": "/srv", "readonly": True}, "/etc:ro"]}}},
        {"contract": {"profile": {"resources": {"memory": 1 << 20, "cpu": 2, "pids": 5}}}},
        {"contract": {"profile": {"network": {"egress": [{"cidr": "10.0.0.0/8", "ports": [80, "90-99"]}, "any"]}}}},
    ],
)
def test_both_forms_of_a_member_are_taken(spec: dict[str, Any]) -> None:
    jsonschema.validate(made(spec=spec), SCHEMA)


@pytest.mark.parametrize(
    "spec",
    [
        {"floor": "yes"},
        {"namespaces": []},
        {"namespaces": ["Shop"]},
        {"contractIssuers": ["me"]},
        {"contract": {"exec_mode": "docker"}},
        {"contract": {"minimum_entropy": -1}},
        {"contract": {"profile": {"volumes": ["nfs"]}}},
        {"contract": {"profile": {"resources": {"memory": "64MB"}}}},
        {"contract": {"profile": {"images": [{"repository": 5}]}}},
        {"contract": {"behaviour": {"on_drift": "explode"}}},
        {"rules": [{"name": "a", "at": [], "expression": "true"}]},
        {"rules": [{"name": "a", "at": ["never"], "expression": "true"}]},
        {"rules": [{"name": "a", "expression": "true"}]},
        {"rules": [{"name": "a", "at": ["create"], "expression": ""}]},
    ],
)
def test_what_the_schema_refuses_no_node_takes(spec: dict[str, Any]) -> None:
    assert refused_by_schema(spec)
    from forgeone_shim.cluster import objects

    with pytest.raises(InvalidInput):
        objects.policy_of(made(spec=spec))


def test_it_is_what_kubernetes_takes_for_a_definition() -> None:
    kubernetes_validate.validate(crd.crd(), "1.30", strict=True)
    kubernetes_validate.validate(crd.crd(), "1.37", strict=True)


def test_forge_prints_it_without_references(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "crd"]) == 0
    told = capsys.readouterr().out
    assert yaml.safe_load(told) == crd.crd()
    assert "&id" not in told
